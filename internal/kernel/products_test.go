package kernel

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

// The bits are the same on every architecture: evidence moves with a state.
func TestProductsGolden(t *testing.T) {
	x := make([]float64, 61)
	for i := range x {
		x[i] = float64(i*37%101) / 101
	}
	for _, impl := range Available() {
		up, down := impl.products(x, .3)
		if math.Float64bits(up) != 0x40b005ac6a0506b9 || math.Float64bits(down) != 0x40b0ebdfd11729db {
			t.Errorf("%v: %#x and %#x", impl, math.Float64bits(up), math.Float64bits(down))
		}
	}
}

// All implementations give the same bits for any number of values, whatever lies
// after them, and those are right.
func TestProducts(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for n := range 130 {
		x := make([]float64, n+1)
		for i := range x {
			x[i] = r.Float64()
		}
		x[n] = math.NaN()
		for _, slope := range []float64{0, .3, 7} {
			up, down := big.NewFloat(1).SetPrec(200), big.NewFloat(1).SetPrec(200)
			for _, x := range x[:n] {
				term := new(big.Float).SetPrec(200).Mul(big.NewFloat(slope), big.NewFloat(x))
				up.Mul(up, new(big.Float).Add(big.NewFloat(1).SetPrec(200), term))
				down.Mul(down, new(big.Float).Sub(new(big.Float).Add(big.NewFloat(1).SetPrec(200), big.NewFloat(slope)), term))
			}
			wantUp, _ := up.Float64()
			wantDown, _ := down.Float64()
			goUp, goDown := portable.products(x[:n], slope)
			for _, impl := range Available() {
				gotUp, gotDown := impl.products(x[:n], slope)
				if gotUp != goUp || gotDown != goDown {
					t.Fatalf("%v: %d values, slope %g: %x and %x, in Go %x and %x", impl, n, slope, gotUp, gotDown, goUp, goDown)
				}
				if math.Abs(gotUp-wantUp) > 1e-13*wantUp || math.Abs(gotDown-wantDown) > 1e-13*wantDown {
					t.Fatalf("%v: %d values, slope %g: %g and %g, want %g and %g", impl, n, slope, gotUp, gotDown, wantUp, wantDown)
				}
			}
		}
	}
}
