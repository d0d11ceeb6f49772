package config

import (
	"bytes"
	"os"
	"path/filepath"
)

// ReadPasswordRules returns what libpwquality would read, later lines over
// earlier ones: the drop-ins by name, then the file itself. What is missing or
// cannot be read adds nothing.
func (l Layout) ReadPasswordRules() []byte {
	// Glob sorts. Its only error is a bad pattern, which this is not.
	files, _ := filepath.Glob(l.PasswordRules + ".d/*.conf")
	var texts [][]byte
	for _, f := range append(files, l.PasswordRules) {
		if text, err := os.ReadFile(f); err == nil {
			texts = append(texts, text)
		}
	}
	return bytes.Join(texts, []byte("\n"))
}
