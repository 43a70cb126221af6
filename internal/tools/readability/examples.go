package main

import (
	"os"
	"path/filepath"
	"strings"
)

// noExample is what a package document says that has no Example function, and
// then why.
const noExample = "no example"

// findExamples names the packages below a directory that have neither an
// Example function nor a word on why not. Commands have their help.
func (r *report) findExamples(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		return err
	}

	var code, tests strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if strings.HasSuffix(file, "_test.go") {
			tests.Write(text)
		} else {
			code.Write(text)
		}
	}

	library := code.Len() > 0 && !strings.Contains(code.String(), "\npackage main\n")
	if library && !strings.Contains(tests.String(), "\nfunc Example") && !strings.Contains(code.String(), noExample) {
		r.unexplained = append(r.unexplained, dir+`: neither an Example function nor "`+noExample+`" and the reason`)
	}
	return nil
}
