// Command neon generates the kernels of arm64: the tiles of Prototypes.Nearest
// and of matrix products, the sums over 64 lanes, and what widens 16-bit floats. It writes Go's assembly
// itself, since avo has no arm64, and the instructions that Go's assembler lacks
// as words (Arm Architecture Reference Manual, C7.2), each beside its name.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"strings"
)

// A file is the assembly, and the declarations.
type file struct{ asm, stubs strings.Builder }

func (f *file) line(format string, args ...any)  { fmt.Fprintf(&f.asm, "\t"+format+"\n", args...) }
func (f *file) label(format string, args ...any) { fmt.Fprintf(&f.asm, "\n"+format+":\n", args...) }

// text begins a function: arguments are the names of eight bytes each, in order,
// but for those that end in ":", which have four.
func (f *file) text(name, signature string, frame int, doc ...string) {
	fmt.Fprintf(&f.asm, "\n// func %s%s\nTEXT ·%s(SB), NOSPLIT, $0-%d\n", name, signature, name, frame)
	f.stubs.WriteString("\n")
	for _, line := range doc {
		fmt.Fprintf(&f.stubs, "// %s\n", line)
	}
	fmt.Fprintf(&f.stubs, "//\n//go:noescape\nfunc %s%s\n", name, signature)
}

// word writes an instruction of three registers of four float32 values.
func (f *file) word(name string, bits, d, n, m int) {
	f.line("WORD $0x%08x // %s V%d.4S, V%d.4S, V%d.4S", bits|m<<16|n<<5|d, name, d, n, m)
}

func (f *file) fadd(d, n, m int) { f.word("FADD", 0x4e20d400, d, n, m) }
func (f *file) fsub(d, n, m int) { f.word("FSUB", 0x4ea0d400, d, n, m) }
func (f *file) fmul(d, n, m int) { f.word("FMUL", 0x6e20dc00, d, n, m) }
func (f *file) fmax(d, n, m int) { f.word("FMAX", 0x4e20f400, d, n, m) }
func (f *file) fmin(d, n, m int) { f.word("FMIN", 0x4ea0f400, d, n, m) }

// fcmgt sets d to ones where n > m, fcmge where n ≥ m.
func (f *file) fcmgt(d, n, m int) { f.word("FCMGT", 0x6ea0e400, d, n, m) }
func (f *file) fcmge(d, n, m int) { f.word("FCMGE", 0x6e20e400, d, n, m) }

// bsl sets d to n where d has ones, else to m.
func (f *file) bsl(d, n, m int) { f.word("BSL", 0x6e601c00, d, n, m) }

// fmla adds n times value i of m to d.
func (f *file) fmla(d, n, m, i int) {
	bits := 0x4f801000 | (i&1)<<21 | m<<16 | (i>>1)<<11 | n<<5 | d
	f.line("WORD $0x%08x // FMLA V%d.4S, V%d.4S, V%d.S[%d]", bits, d, n, m, i)
}

// list is a list of consecutive vector registers.
func list(first, n int) string {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("V%d.S4", first+i))
	}
	return "[" + strings.Join(names, ", ") + "]"
}

func (f *file) zero(v int) { f.line("VEOR V%d.B16, V%d.B16, V%d.B16", v, v, v) }

const (
	width     = 2 // vectors in a line of a panel
	partFirst = 0 // the number of the bit: see tileKernel
	partLast  = 1
)

// panel generates a function that multiplies tiles of so many rows by one panel
// of 8 prototypes, or by some of its dimensions, and at the last takes the
// products into the rows' states.
//
// V0 to V15 are the sums, V16 and V17 a line of the panel, V18 to V25 four values
// of each row.
func (f *file) panel(rows int) {
	name := fmt.Sprintf("panel%dx8NEON", rows)
	f.text(name, "(x *float32, tiles, d, count int, bias, panel, partial *float32, part int, state *float32, class int, next *float32, step int)", 96,
		fmt.Sprintf("%s multiplies tiles > 0 times %d rows by a panel of 8 prototypes: see tileKernel.", name, rows))
	phases := 1 // chains of sums
	if rows == 1 {
		phases = 4
	}
	sum := func(phase, row, i int) int { return (phase*rows+row)*width + i }
	const x, tiles, stride, count, w, partial, state, next, step, part, values, first = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 18, 16
	row := func(r int) int { return 10 + r } // R10 to R17
	for _, p := range []struct {
		name         string
		offset, into int
	}{{"x", 0, x}, {"tiles", 8, tiles}, {"d", 16, stride}, {"partial", 48, partial}, {"part", 56, part}, {"state", 64, state}, {"next", 80, next}, {"step", 88, step}} {
		f.line("MOVD %s+%d(FP), R%d", p.name, p.offset, p.into)
	}
	f.line("LSL $2, R%d, R%d", stride, stride)
	f.label("tile")
	f.line("MOVD R%d, R%d", x, row(0))
	for r := 1; r < rows; r++ {
		f.line("ADD R%d, R%d, R%d", stride, row(r-1), row(r))
	}
	f.line("MOVD bias+32(FP), R19")
	f.line("VLD1 (R19), %s", list(first, width))
	for phase := range phases {
		for r := range rows {
			for i := range width {
				if v := sum(phase, r, i); phase == 0 {
					f.line("VMOV V%d.B16, V%d.B16", first+i, v)
				} else {
					f.zero(v)
				}
			}
		}
	}
	f.line("MOVD panel+40(FP), R%d", w)
	f.line("MOVD count+24(FP), R%d", count)
	f.line("SUBS $4, R%d, R%d", count, count)
	f.line("BLT rest")
	f.label("four")
	for r := range rows {
		f.line("VLD1.P 16(R%d), %s", row(r), list(values+r, 1))
	}
	for k := range 4 {
		f.line("VLD1.P %d(R%d), %s", 16*width, w, list(first, width))
		for r := range rows {
			for i := range width {
				f.fmla(sum(k%phases, r, i), first+i, values+r, k)
			}
		}
		if k%2 == 0 {
			f.line("PRFM %d(R%d), PLDL2KEEP", 32*k, next)
		}
	}
	f.line("ADD R%d, R%d", step, next)
	f.line("SUBS $4, R%d, R%d", count, count)
	f.line("BGE four")
	f.label("rest")
	f.line("ADDS $4, R%d, R%d", count, count)
	f.line("BEQ end")
	f.label("one")
	f.line("VLD1.P %d(R%d), %s", 16*width, w, list(first, width))
	for r := range rows {
		f.line("VLD1R.P 4(R%d), %s", row(r), list(values, 1))
		for i := range width {
			f.line("VFMLA V%d.S4, V%d.S4, V%d.S4", values, first+i, sum(0, r, i))
		}
	}
	f.line("SUBS $1, R%d, R%d", count, count)
	f.line("BNE one")
	f.label("end")
	for half := phases / 2; half > 0; half /= 2 {
		for phase := range half {
			for r := range rows {
				for i := range width {
					f.fadd(sum(phase, r, i), sum(phase, r, i), sum(phase+half, r, i))
				}
			}
		}
	}
	f.line("TBNZ $%d, R%d, first", partFirst, part)
	f.line("MOVD R%d, R19", partial)
	for r := range rows {
		f.line("VLD1.P %d(R19), %s", 16*width, list(first, width))
		for i := range width {
			f.fadd(sum(0, r, i), sum(0, r, i), first+i)
		}
	}
	f.label("first")
	f.line("TBNZ $%d, R%d, last", partLast, part)
	for r := range rows {
		f.line("VST1.P %s, %d(R%d)", list(sum(0, r, 0), width), 16*width, partial)
	}
	f.line("B done")
	f.label("last")
	f.line("ADD $%d, R%d", 16*width*rows, partial)
	const line, classes = 26, 27 // and V28
	f.line("MOVD class+72(FP), R19")
	f.line("VDUP R19, V%d.S4", line)
	f.line("MOVD $numbers<>(SB), R20")
	f.line("VLD1 (R20), %s", list(classes, width))
	for i := range width {
		f.line("VADD V%d.S4, V%d.S4, V%d.S4", line, classes+i, classes+i)
	}
	const best, second, class, mask, low, newBest, newSecond, newClass = 18, 19, 20, 21, 22, 23, 24, 25
	for r := range rows {
		a, b := sum(0, r, 0), sum(0, r, 1)
		f.line("VLD1 (R%d), %s", state, list(best, 3))
		f.fcmgt(mask, b, a)
		f.fmin(newSecond, a, b)
		f.fmax(newBest, a, b)
		f.bsl(mask, classes+1, classes) // the class of the larger of the two
		f.fcmge(newClass, best, newBest)
		f.bsl(newClass, class, mask)
		f.fmax(newSecond, second, newSecond)
		f.fmin(low, best, newBest)
		f.fmax(newSecond, newSecond, low)
		f.fmax(newBest, best, newBest)
		f.line("VST1.P %s, 48(R%d)", list(newBest, 3), state)
	}
	f.label("done")
	f.line("MOVD $%d, R19", rows)
	f.line("MADD R19, R%d, R%d, R%d", x, stride, x) // x += stride·rows
	f.line("SUBS $1, R%d, R%d", tiles, tiles)
	f.line("BNE tile")
	f.line("RET")
}

// sums generates a sum over rows of blocks of 64 values, and over one more of
// each at tails, if that is not nil: lane l adds up, in order, the values j with
// j mod 64 = l. V0 to V15 are the lanes. term turns registers V16+4i on, four
// vectors of each row, into the ones at V16 that are added.
func (f *file) sums(name, signature string, rows int, result int, doc []string, blocks, tails int, prepare func(), term func()) {
	f.text(name, signature, result+4, doc...)
	f.line("MOVD blocks+%d(FP), R8", blocks)
	for r := range rows {
		f.line("MOVD %s+%d(FP), R%d", []string{"x", "p"}[r], 8*r, r)
		f.line("MOVD %s+%d(FP), R%d", []string{"xtail", "ptail"}[r], tails+8*r, 4+r)
	}
	prepare()
	for v := range 16 {
		f.zero(v)
	}
	f.label("blocks")
	f.line("CBZ R8, tail")
	f.label("block")
	for group := range 4 {
		for r := range rows {
			f.line("VLD1.P 64(R%d), %s", r, list(16+4*r, 4))
		}
		term()
		for i := range 4 {
			f.fadd(4*group+i, 4*group+i, 16+i)
		}
	}
	f.line("SUBS $1, R8, R8")
	f.line("BNE block")
	f.label("tail")
	f.line("CBZ R4, total")
	for r := range rows {
		f.line("MOVD R%d, R%d", 4+r, r)
	}
	f.line("MOVD $0, R4")
	f.line("MOVD $1, R8")
	f.line("B block")
	f.label("total")
	for half := 8; half > 0; half /= 2 {
		for i := range half {
			f.fadd(i, i, i+half)
		}
	}
	for _, bytes := range []int{8, 4} { // lanes two apart, then neighbours
		f.line("VEXT $%d, V0.B16, V0.B16, V1.B16", bytes)
		f.fadd(0, 0, 1)
	}
	f.line("FMOVS F0, ret+%d(FP)", result)
	f.line("RET")
}

// tile generates the product of 6 rows with a panel of 16 columns: see loops.
// V0 to V23 are the sums, V24 to V27 a line of b, V28 to V31 values of a.
func (f *file) tile() {
	const rows, vectors, b, a = 6, 4, 24, 28
	f.text("tileNEON", "(k int, a *float32, rowStride, stepA int, b *float32, stepB int, c *float32, strideC int, add bool)", 65,
		"tileNEON computes c = a·b, or c += a·b with add, for 6 rows of c and one panel of 16",
		"columns. Strides and steps are in values.")
	f.line("MOVD k+0(FP), R0")
	f.line("MOVD a+8(FP), R10")
	f.line("MOVD rowStride+16(FP), R1")
	f.line("MOVD stepA+24(FP), R2")
	f.line("MOVD b+32(FP), R3")
	f.line("MOVD stepB+40(FP), R4")
	f.line("MOVD c+48(FP), R5")
	f.line("MOVD strideC+56(FP), R6")
	f.line("MOVBU add+64(FP), R7")
	for _, r := range []int{1, 2, 4, 6} {
		f.line("LSL $2, R%d, R%d", r, r)
	}
	for r := 1; r < rows; r++ {
		f.line("ADD R1, R%d, R%d", 9+r, 10+r)
	}
	for v := range rows * vectors {
		f.zero(v)
	}
	f.line("CBZ R0, store")
	f.label("value")
	f.line("VLD1 (R3), %s", list(b, vectors))
	f.line("ADD R4, R3")
	for r := range rows {
		v := a + r%4
		f.line("VLD1R (R%d), %s", 10+r, list(v, 1))
		f.line("ADD R2, R%d", 10+r)
		for i := range vectors {
			f.line("VFMLA V%d.S4, V%d.S4, V%d.S4", v, b+i, r*vectors+i)
		}
	}
	f.line("SUBS $1, R0, R0")
	f.line("BNE value")
	f.label("store")
	for r := range rows {
		skip := fmt.Sprintf("set%d", r)
		f.line("CBZ R7, %s", skip)
		f.line("VLD1 (R5), %s", list(b, vectors))
		for i := range vectors {
			f.fadd(r*vectors+i, r*vectors+i, b+i)
		}
		f.label("%s", skip)
		f.line("VST1 %s, (R5)", list(r*vectors, vectors))
		f.line("ADD R6, R5")
	}
	f.line("RET")
}

// widen generates a function that converts n values of 16 bits, a multiple of 8:
// convert turns those of V0 into the float32 values of V1 and V2.
func (f *file) widen(name, doc string, convert func()) {
	f.text(name, "(to *float32, from *byte, n int)", 24, fmt.Sprintf("%s sets n values of to, a multiple of 8, to %s of from.", name, doc))
	f.line("MOVD to+0(FP), R0")
	f.line("MOVD from+8(FP), R1")
	f.line("MOVD n+16(FP), R2")
	f.zero(3)
	f.line("CBZ R2, done")
	f.label("eight")
	f.line("VLD1.P 16(R1), [V0.H8]")
	convert()
	f.line("VST1.P [V1.S4, V2.S4], 32(R0)")
	f.line("SUBS $8, R2, R2")
	f.line("BNE eight")
	f.label("done")
	f.line("RET")
}

func main() {
	pkg := flag.String("pkg", "kernel", "the package of the declarations")
	out := flag.String("out", "", "the `file` of the assembly")
	stubs := flag.String("stubs", "", "the `file` of the declarations")
	flag.Parse()
	f := &file{}
	head := fmt.Sprintf("// Code generated by command: go run main.go -pkg %s -out %s -stubs %s. DO NOT EDIT.\n", *pkg, *out, *stubs)
	f.asm.WriteString(head + "\n#include \"textflag.h\"\n\n")
	f.stubs.WriteString(head + fmt.Sprintf("\npackage %s\n", *pkg))
	for i := range 4 * width {
		fmt.Fprintf(&f.asm, "DATA numbers<>+%d(SB)/4, $%d\n", 4*i, i)
	}
	fmt.Fprintf(&f.asm, "GLOBL numbers<>(SB), RODATA|NOPTR, $%d\n", 16*width)
	f.panel(8)
	f.panel(1)
	f.sums("squaresNEON", "(x *float32, blocks int, xtail *float32) float32", 1, 24,
		[]string{"squaresNEON returns Σ x_j² over so many blocks of 64 values at x, and one at xtail."}, 8, 16,
		func() {},
		func() {
			for i := range 4 {
				f.fmul(16+i, 16+i, 16+i)
			}
		})
	f.sums("squaredNEON", "(x, p *float32, blocks int, inv float32, xtail, ptail *float32) float32", 2, 48,
		[]string{"squaredNEON returns Σ (x_j·inv − p_j)², as squaresNEON does."}, 16, 32,
		func() {
			f.line("FMOVS inv+24(FP), F30")
			f.line("VDUP V30.S[0], V30.S4")
		},
		func() {
			for i := range 4 {
				f.fmul(16+i, 16+i, 30)
				f.fsub(16+i, 16+i, 20+i)
				f.fmul(16+i, 16+i, 16+i)
			}
		})
	f.tile()
	f.widen("float16NEON", "IEEE 754 halves", func() {
		f.line("WORD $0x0e217801 // FCVTL V1.4S, V0.4H")
		f.line("WORD $0x4e217802 // FCVTL2 V2.4S, V0.8H")
	})
	f.widen("bfloat16NEON", "bfloat16 values", func() { // each behind 16 zeros
		f.line("VZIP1 V0.H8, V3.H8, V1.H8")
		f.line("VZIP2 V0.H8, V3.H8, V2.H8")
	})
	for name, text := range map[string]string{*out: f.asm.String(), *stubs: f.stubs.String()} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			log.Fatal(err)
		}
	}
}
