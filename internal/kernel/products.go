package kernel

// lanesOfProducts is how many partial products make up a product of so many values or
// more: value i goes into lane i mod 8, in order; then lanes l and l+4 are multiplied,
// l and l+2, l and l+1, and at last come the values that are left, in order. This order
// is the definition of the last bits, and so is that no product is fused with a sum:
// each conversion to float64 says so.
const lanesOfProducts = 8

// Products returns Π (1+slope·x) and Π (1+slope·(1−x)) over x, the factors of bets on
// x and on 1−x with the same stake. Every implementation gives the same bits.
func Products(x []float64, slope float64) (up, down float64) {
	impl, _ := Active() // an implementation in any case
	return impl.products(x, slope)
}

func (i *Implementation) products(x []float64, slope float64) (up, down float64) {
	whole := len(x) &^ (lanesOfProducts - 1)
	up, down = 1, 1
	if whole > 0 {
		up, down = i.loops.products(x[:whole], slope)
	}
	for _, x := range x[whole:] {
		t := float64(slope * x)
		up *= 1 + t
		down *= (1 + slope) - t
	}
	return up, down
}

// productsGo is Products of a multiple of lanesOfProducts.
func productsGo(x []float64, slope float64) (up, down float64) {
	var ups, downs [lanesOfProducts]float64
	for a := range lanesOfProducts / 2 { // two lanes at a time stay in registers
		b := a + lanesOfProducts/2
		u0, u1, d0, d1 := 1., 1., 1., 1.
		for i := 0; i < len(x); i += lanesOfProducts {
			turn := x[i:][:lanesOfProducts]
			t0, t1 := float64(slope*turn[a]), float64(slope*turn[b])
			u0 *= 1 + t0
			d0 *= (1 + slope) - t0
			u1 *= 1 + t1
			d1 *= (1 + slope) - t1
		}
		ups[a], downs[a] = u0*u1, d0*d1
	}
	return (ups[0] * ups[2]) * (ups[1] * ups[3]), (downs[0] * downs[2]) * (downs[1] * downs[3])
}
