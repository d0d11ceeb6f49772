/* What the module calls in place of what would change the process. */
long fuzz_syscall(long n, ...);
int fuzz_prctl(int what, ...);
int fuzz_nice(int by);
