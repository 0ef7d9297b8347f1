package kernel

import "golang.org/x/sys/cpu"

var (
	avx512 = Implementation{name: "avx512", meter: &meter{16, fmaAVX512, readAVX512}, loops: &goLoops}
	avx2   = Implementation{name: "avx2", meter: &meter{8, fmaAVX2, readAVX2}, loops: &goLoops}
)

// native returns what this CPU can run, the fastest first. cpu reports a
// feature only where the operating system saves the registers that it needs.
func native() []*Implementation {
	var list []*Implementation
	vectors := cpu.X86.HasAVX2 && cpu.X86.HasFMA && cpu.X86.HasF16C
	if vectors && cpu.X86.HasAVX512F && cpu.X86.HasAVX512VL && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512DQ {
		list = append(list, &avx512)
	}
	if vectors {
		list = append(list, &avx2)
	}
	return list
}
