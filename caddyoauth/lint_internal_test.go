package caddyoauth

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// docs/operations.md has the table of what lint looks for, word for word.
func TestManualHasEveryFinding(t *testing.T) {
	page, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(strings.ReplaceAll(string(page), "\r\n", "\n"), "\n## Lint\n")
	section, _, _ = strings.Cut(section, "\n## ")
	_, got, _ := strings.Cut(section, "\n|---|---|---|---|\n")
	got, _, _ = strings.Cut(got, "\n\n")
	var want []string
	for _, c := range lintChecks() {
		code := "`" + c.code + "`"
		if c.certain {
			code = "**" + code + "**"
		}
		want = append(want, fmt.Sprintf("| %s | %s | %s | %s |", code, c.kind, c.means, c.do))
	}
	if want := strings.Join(want, "\n"); strings.TrimSpace(got) != want {
		t.Errorf("the table in docs/operations.md should be\n%s", want)
	}
}

// Codes are said in words, each of them once, and what is printed about them are sentences.
func TestFindingsAreExplained(t *testing.T) {
	seen := make(map[string]bool)
	for _, c := range lintChecks() {
		if seen[c.code] || !regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)+$`).MatchString(c.code) {
			t.Errorf("the code %s is there twice, or not in words", c.code)
		}
		seen[c.code] = true
		if !strings.HasSuffix(c.means, ".") || !strings.HasSuffix(c.do, ".") || c.find == nil {
			t.Errorf("%s is not explained, or not looked for", c.code)
		}
	}
}
