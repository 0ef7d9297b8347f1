// Command products generates the products of factors that are linear in each of
// many values. Their twin in Go is in internal/kernel/products.go.
package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

const (
	lanes   = 4 // of a vector of float64
	vectors = 2 // of values a turn
)

// swapped returns the two values of v, the second one first.
func swapped(v reg.VecVirtual) reg.VecVirtual {
	other := XMM()
	VPERMILPD(Imm(1), v, other)
	return other
}

func main() {
	ConstraintExpr("amd64")
	TEXT("productsAVX2", NOSPLIT, "func(x *float64, n int, slope, most float64) (up, down float64)")
	Pragma("noescape")
	Doc("productsAVX2 returns Π (1+slope·x) and Π (most−slope·x) over the n values of x, a multiple of 8 above 0, in the order of", "productsGo.")
	x := Load(Param("x"), GP64()).(reg.GPVirtual)
	n := Load(Param("n"), GP64()).(reg.GPVirtual)
	slope, most, one := YMM(), YMM(), YMM()
	VBROADCASTSD(NewParamAddr("slope", 16), slope)
	VBROADCASTSD(NewParamAddr("most", 24), most)
	VBROADCASTSD(ConstData("one", U64(math.Float64bits(1))), one)
	up, down := [vectors]reg.VecVirtual{}, [vectors]reg.VecVirtual{}
	for i := range vectors {
		up[i], down[i] = YMM(), YMM()
		VMOVAPD(one, up[i])
		VMOVAPD(one, down[i])
	}

	Label("turn")
	for i := range vectors {
		t, factor := YMM(), YMM()
		VMULPD(Mem{Base: x, Disp: 8 * lanes * i}, slope, t)
		VADDPD(t, one, factor)
		VMULPD(factor, up[i], up[i])
		VSUBPD(t, most, t)
		VMULPD(t, down[i], down[i])
	}
	ADDQ(U32(8*lanes*vectors), x)
	SUBQ(U32(lanes*vectors), n)
	JNE(LabelRef("turn"))

	var products [2]reg.VecVirtual
	for i, lanes := range [...][vectors]reg.VecVirtual{up, down} {
		all, half := lanes[0], XMM()
		VMULPD(lanes[1], all, all)
		VEXTRACTF128(Imm(1), all, half)
		VMULPD(half, all.AsX(), half)
		VMULSD(swapped(half), half, half)
		products[i] = half
	}
	VZEROUPPER() // it keeps the lower halves
	for i, product := range products {
		Store(product, ReturnIndex(i))
	}
	RET()
	Generate()
}
