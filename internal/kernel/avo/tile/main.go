// Command tile generates the tiles of matrix products: a few rows of the left
// operand times one or two panels of 16 columns of the right one.
package main

import (
	"fmt"
	"strings"

	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// A tile keeps rows × vectors sums in registers. For each value of the inner
// dimension it loads the vectors of b once, and each value of a once.
type tile struct {
	name    string
	rows    int
	width   int // values in a vector
	vectors int // in a row of the tile
	vector  func() reg.VecVirtual
}

const panelWidth, valueSize = 16, 4

func (t tile) generate() {
	wide := t.vectors*t.width > panelWidth
	signature := "func(k int, a *float32, rowStride, stepA int, b *float32, stepB int, c *float32, strideC int, add bool)"
	doc := fmt.Sprintf("%s computes c = a·b, or c += a·b with add, for %d rows of c and one panel of 16\ncolumns. Strides and steps are in values.", t.name, t.rows)
	if wide {
		signature = "func(k int, a *float32, rowStride, stepA int, b *float32, stepB, nextPanel int, c *float32, strideC int, add bool)"
		doc = fmt.Sprintf("%s computes c = a·b, or c += a·b with add, for %d rows of c and two panels of\n16 columns, nextPanel apart. Strides and steps are in values.", t.name, t.rows)
	}
	TEXT(t.name, NOSPLIT, signature)
	Pragma("noescape")
	Doc(strings.Split(doc, "\n")...)
	k := Load(Param("k"), GP64())
	// Three rows share a base register: base, base + stride, base + 2·stride.
	stride := t.stride("rowStride")
	three := GP64()
	LEAQ(operand.Mem{Base: stride, Index: stride, Scale: 2}, three)
	bases := []reg.GPVirtual{Load(Param("a"), GP64()).(reg.GPVirtual)}
	for len(bases)*3 < t.rows {
		next := GP64()
		LEAQ(operand.Mem{Base: bases[len(bases)-1], Index: three, Scale: 1}, next)
		bases = append(bases, next)
	}
	stepA, b, stepB := t.stride("stepA"), Load(Param("b"), GP64()), t.stride("stepB")
	var next reg.GPVirtual
	if wide {
		next = t.stride("nextPanel")
	}
	sums := make([][]reg.VecVirtual, t.rows)
	for r := range sums {
		for range t.vectors {
			s := t.vector()
			if t.width == 16 {
				VPXORD(s, s, s)
			} else {
				VXORPS(s, s, s)
			}
			sums[r] = append(sums[r], s)
		}
	}
	TESTQ(k, k)
	JZ(operand.LabelRef("store"))
	Label("loop")
	right := make([]reg.VecVirtual, t.vectors)
	for v := range right {
		right[v] = t.vector()
		m := operand.Mem{Base: b, Disp: v * t.width * valueSize}
		if wide && v*t.width >= panelWidth {
			m = operand.Mem{Base: b, Index: next, Scale: 1, Disp: (v*t.width - panelWidth) * valueSize}
		}
		VMOVUPS(m, right[v])
	}
	ADDQ(stepB, b)
	for r := range t.rows {
		m := operand.Mem{Base: bases[r/3]}
		if r%3 > 0 {
			m.Index, m.Scale = stride, uint8(r%3)
		}
		if t.vectors == 1 {
			VFMADD231PS_BCST(m, right[0], sums[r][0])
		} else {
			left := t.vector()
			VBROADCASTSS(m, left)
			for v := range right {
				VFMADD231PS(right[v], left, sums[r][v])
			}
		}
		if r%3 == 2 || r == t.rows-1 {
			ADDQ(stepA, bases[r/3])
		}
	}
	DECQ(k)
	JNZ(operand.LabelRef("loop"))

	Label("store")
	c, strideC := Load(Param("c"), GP64()), t.stride("strideC")
	add := Load(Param("add"), GP8())
	TESTB(add, add)
	JZ(operand.LabelRef("set"))
	from := GP64()
	MOVQ(c, from)
	for r := range sums {
		for v, s := range sums[r] {
			VADDPS(operand.Mem{Base: from, Disp: v * t.width * valueSize}, s, s)
		}
		ADDQ(strideC, from)
	}
	Label("set")
	for r := range sums {
		for v, s := range sums[r] {
			VMOVUPS(s, operand.Mem{Base: c, Disp: v * t.width * valueSize})
		}
		ADDQ(strideC, c)
	}
	VZEROUPPER()
	RET()
}

// stride loads a parameter in values, and makes it one in bytes.
func (t tile) stride(parameter string) reg.GPVirtual {
	s := Load(Param(parameter), GP64()).(reg.GPVirtual)
	SHLQ(operand.U8(2), s)
	return s
}

func main() {
	ConstraintExpr("amd64")
	zmm := func() reg.VecVirtual { return ZMM() }
	ymm := func() reg.VecVirtual { return YMM() }
	tile{"tileWideAVX512", 12, 16, 2, zmm}.generate()
	tile{"tileAVX512", 12, 16, 1, zmm}.generate()
	tile{"tileAVX2", 6, 8, 2, ymm}.generate()
	Generate()
}
