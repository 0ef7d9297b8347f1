package kernel

import "golang.org/x/sys/cpu"

var (
	avx512 = Implementation{
		name: "avx512",
		nearest: &nearestKernel{
			lanes: 16,
			block: 768 << 10,
			panels: []panelKernel{
				wide(32, tileKernel{12, panel12x32AVX512}, tileKernel{4, panel4x32AVX512}, tileKernel{1, panel1x32AVX512}),
				wide(16, tileKernel{12, panel12x16AVX512}, tileKernel{4, panel4x16AVX512}, tileKernel{1, panel1x16AVX512}),
			},
			norms:     normsAVX512,
			finish:    finishAVX512,
			distances: distancesAVX512,
		},
		meter: &meter{16, fmaAVX512, readAVX512},
		loops: &avx512Loops,
	}
	avx2 = Implementation{
		name: "avx2",
		nearest: &nearestKernel{
			lanes: 8,
			block: 192 << 10, // CPUs without AVX-512 have 512 KB and less a core
			panels: []panelKernel{
				wide(16, tileKernel{6, panel6x16AVX2}, tileKernel{2, panel2x16AVX2}, tileKernel{1, panel1x16AVX2}),
				narrow(5, 10, 8, tileKernel{2, panel2x5AVX2}, tileKernel{1, panel1x5AVX2}),
			},
			norms:     normsAVX2,
			finish:    finishAVX2,
			distances: distancesAVX2,
		},
		meter: &meter{8, fmaAVX2, readAVX2},
		loops: &avx2Loops,
	}
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
