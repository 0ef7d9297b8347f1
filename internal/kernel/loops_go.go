package kernel

import "math"

// goLoops are the definitions.
var goLoops = loops{
	rows: 4,
	tile: tileGo, transpose: transposeGo, squares: squaresGo, peaks: peaksGo, roots: rootsGo, sums: sumsGo, gaps: gapsGo,
	exps: expsGo, scaleRows: scaleRowsGo, divideRows: divideRowsGo,
	tangents: tangentsGo, adamW: adamWGo,
	float16: float16Go, bfloat16: bfloat16Go,
	products: productsGo,
}

// tileGo computes c = a·b, or c += a·b with add, where a is 4×k with rows
// rowStride and columns stepA apart, b is a panel of k×16 with rows stepB
// apart, and c is 4×16 with rows strideC apart. Every product is summed over k
// in order, from zero.
func tileGo(k int, a []float32, rowStride, stepA int, b []float32, stepB int, c []float32, strideC int, add bool) {
	for j := 0; j < panelWidth; j += 2 {
		var s00, s01, s10, s11, s20, s21, s30, s31 float32
		for l := range k {
			x := a[l*stepA:]
			y := b[l*stepB+j:][:2]
			x0, x1, x2, x3 := x[0], x[rowStride], x[2*rowStride], x[3*rowStride]
			s00 += x0 * y[0]
			s01 += x0 * y[1]
			s10 += x1 * y[0]
			s11 += x1 * y[1]
			s20 += x2 * y[0]
			s21 += x2 * y[1]
			s30 += x3 * y[0]
			s31 += x3 * y[1]
		}
		for r, s := range [4][2]float32{{s00, s01}, {s10, s11}, {s20, s21}, {s30, s31}} {
			out := c[r*strideC+j:][:2]
			if add {
				s[0] += out[0]
				s[1] += out[1]
			}
			out[0], out[1] = s[0], s[1]
		}
	}
}

func transposeGo(from []float32, stride, k int, to []float32) {
	for i := range panelWidth {
		for j, v := range from[i*stride:][:k] {
			to[panelWidth*j+i] = v
		}
	}
}

// squaresGo sets out[i] to Σ x_ij² over the d values of row i.
func squaresGo(x []float32, d int, out []float32) {
	for i := range out {
		out[i] = float32(sumOfSquares(x[i*d : (i+1)*d]))
	}
}

// peaksGo finds the peak of the n values of each row of v.
func peaksGo(v []float32, n, stride int, tie, limit []float32, out []peak) {
	for i := range out {
		row := v[i*stride:][:n]
		p := peak{max: float32(math.Inf(-1)), first: -1}
		for _, x := range row {
			p.max = max(p.max, x)
		}
		bound := min(p.max-tie[i], limit[i])
		for j, x := range row {
			if x >= bound {
				if p.near == 0 {
					p.first = int32(j)
				}
				p.near++
			}
		}
		out[i] = p
	}
}

// rootsGo replaces the values v of row i by s·√max(0, a_i + b_i·v).
func rootsGo(v []float32, n, stride int, a, b []float32, s float32) {
	for i := range a {
		for j, x := range v[i*stride:][:n] {
			v[i*stride+j] = s * float32(math.Sqrt(float64(max(0, a[i]+b[i]*x))))
		}
	}
}

// sumsGo takes the sums of the n values of each row of v.
func sumsGo(v []float32, n, stride int, out []sums) {
	for i := range out {
		row := v[i*stride:][:n]
		s := sums{max: float32(math.Inf(-1))}
		for _, x := range row {
			s.max = max(s.max, x)
		}
		var total, exps, moment float64
		for _, x := range row {
			total += float64(x)
			if x == s.max {
				s.equal++
				continue
			}
			e := math.Exp(float64(x - s.max))
			exps += e
			moment += float64(x-s.max) * e
		}
		s.total, s.exps, s.moment = float32(total), float32(exps), float32(moment)
		out[i] = s
	}
}

// gapsGo sets out[i] to Σ_j (inv_i·x_ij − p_cj)² with c = class[i].
func gapsGo(x []float32, d int, inv []float32, p []float32, class []int32, out []float32) {
	for i := range out {
		row, proto := x[i*d:(i+1)*d], p[int(class[i])*d:][:d]
		var s float64
		for j, v := range row {
			diff := float64(v*inv[i] - proto[j])
			s += diff * diff
		}
		out[i] = float32(s)
	}
}

// expsGo replaces the values v, in rows of n, by exp(scale·v − m), m the largest
// scale·v, and sums them.
func expsGo(v []float32, n int, scale float32, out []expSum) {
	for i := range out {
		row := v[i*n:][:n]
		largest, sum := float32(math.Inf(-1)), 0.
		for _, x := range row {
			largest = max(largest, scale*x)
		}
		for j, x := range row {
			row[j] = float32(math.Exp(float64(float32(scale*x) - largest)))
			sum += float64(row[j])
		}
		out[i] = expSum{largest, float32(sum)}
	}
}

// scaleRowsGo multiplies row i of v, of n values, by by[i].
func scaleRowsGo(v []float32, n int, by []float32) {
	for i, f := range by {
		row := v[i*n:][:n]
		for j := range row {
			row[j] *= f
		}
	}
}

// divideRowsGo replaces g, in rows of n, by factor·g/max(d, MinDistance), and
// sets out[i] to the Σ g·d of row i before.
func divideRowsGo(g, d []float32, n int, factor float32, out []float32) {
	for i := range out {
		row, by := g[i*n:][:n], d[i*n:][:n]
		var s float64
		for j, v := range row {
			s += float64(v) * float64(by[j])
			row[j] = factor * v / max(by[j], MinDistance)
		}
		out[i] = float32(s)
	}
}

// tangentsGo replaces each row g by inv·(g − inv²·(g·x)·x), for the rows x of d
// values and inv the inverse of the norm of each.
func tangentsGo(g, x []float32, d int, inv []float32) {
	for i, f := range inv {
		row, along := g[i*d:][:d], x[i*d:][:d]
		var dot float64
		for j, v := range row {
			dot += float64(v) * float64(along[j])
		}
		part := f * (f * float32(dot)) // f² may leave float32
		for j := range row {
			row[j] = f * (row[j] - part*along[j])
		}
	}
}

// adamWGo is AdamW.
func adamWGo(value, grad, m, v []float32, rate *AdamWRate) {
	for i, g := range grad {
		m[i] += rate.newM * (g - m[i])
		v[i] += rate.newV * (g*g - v[i])
		value[i] = rate.keep*value[i] - rate.move*m[i]/(float32(math.Sqrt(float64(v[i])))+rate.epsilon)
	}
}
