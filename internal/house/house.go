// Package house holds the tests of the tree itself: which room may import
// which, and that every package says what it knows. It has no code of its own;
// what a rule is for stands beside the rule.
package house
