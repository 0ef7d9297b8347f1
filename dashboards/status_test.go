package dashboards

import (
	"regexp"
	"testing"
)

// What is defined twice shows once, and not always the one that is filled.
func TestStatusPageDefinesEverythingOnce(t *testing.T) {
	count := func(expr string) map[string]int {
		n := make(map[string]int)
		for _, match := range regexp.MustCompile(expr).FindAllSubmatch(StatusPage, -1) {
			n[string(match[1])]++
		}
		return n
	}
	ids := count(`\bid="([^"]+)"`)
	for id := range count(`\$\("([^"]+)"\)`) {
		if ids[id] != 1 {
			t.Errorf("the script fills %q, and there are %d", id, ids[id])
		}
	}
	for name, n := range count(`(?m)^(?:async )?function (\w+)`) {
		if n != 1 {
			t.Errorf("function %s is defined %d times", name, n)
		}
	}
	if len(ids) == 0 {
		t.Error("no ids were found")
	}
}
