package kernel

import "testing"

func TestChoose(t *testing.T) {
	all := []*Implementation{{name: "avx512"}, {name: "avx2"}, &portable}
	for _, test := range []struct {
		forced    string
		available []*Implementation
		want, err string
	}{
		{"", all, "avx512", ""},
		{"", all[2:], "go", ""},
		{"avx512", all, "avx512", ""},
		{"avx2", all, "avx2", ""},
		{"go", all, "go", ""},
		{"avx512", all[1:], "go", "OODMON_KERNEL=avx512: this CPU, or its operating system, lacks what that needs; it can run avx2, go"},
		{"neon", all[2:], "go", "OODMON_KERNEL=neon: this CPU, or its operating system, lacks what that needs; it can run go"},
		{"AVX2", all, "go", "OODMON_KERNEL=AVX2: no such implementation; there are avx512, avx2, neon and go, and this CPU can run avx512, avx2, go"},
	} {
		got, err := choose(test.forced, test.available)
		message := ""
		if err != nil {
			message = err.Error()
		}
		if got.String() != test.want || message != test.err {
			t.Errorf("%q: %v, %q; want %s, %q", test.forced, got, message, test.want, test.err)
		}
	}
}
