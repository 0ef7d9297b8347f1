package kernel

import "unsafe"

var (
	avx512Loops = loops{
		rows:      12,
		tile:      tileOf(12, tileAVX512),
		wideTile:  wideTileOf(12, tileWideAVX512),
		transpose: transposeVector,
		squares:   squaresOf(squaresAVX512), gaps: gapsOf(gapsAVX512), peaks: peaksOf(peaksAVX512),
		roots: rootsOf(rootsAVX512), sums: sumsOf(sumsAVX512), exps: expsOf(expsAVX512),
		scaleRows: scaleRowsOf(scaleRowsAVX512), divideRows: divideRowsOf(divideRowsAVX512),
		tangents: tangentsOf(tangentsAVX512), adamW: adamWOf(adamWAVX512),
		float16: widenOf(float16AVX2, float16Go), bfloat16: widenOf(bfloat16AVX2, bfloat16Go),
		products: productsVector,
	}
	avx2Loops = loops{
		rows:      6,
		tile:      tileOf(6, tileAVX2),
		transpose: transposeVector,
		squares:   squaresOf(squaresAVX2), gaps: gapsOf(gapsAVX2), peaks: peaksOf(peaksAVX2),
		roots: rootsOf(rootsAVX2), sums: sumsOf(sumsAVX2), exps: expsOf(expsAVX2),
		scaleRows: scaleRowsOf(scaleRowsAVX2), divideRows: divideRowsOf(divideRowsAVX2),
		tangents: tangentsOf(tangentsAVX2), adamW: adamWOf(adamWAVX2),
		float16: widenOf(float16AVX2, float16Go), bfloat16: widenOf(bfloat16AVX2, bfloat16Go),
		products: productsVector,
	}
)

// What follows gives the assembly addresses, after a look at the last value of
// each slice that it will touch: a call that does not fit panics, as in Go.

func tileOf(rows int, f func(k int, a *float32, rowStride, stepA int, b *float32, stepB int, c *float32, strideC int, add bool)) func(int, []float32, int, int, []float32, int, []float32, int, bool) {
	return func(k int, a []float32, rowStride, stepA int, b []float32, stepB int, c []float32, strideC int, add bool) {
		_, _, _ = a[(rows-1)*rowStride+(k-1)*stepA], b[(k-1)*stepB+panelWidth-1], c[(rows-1)*strideC+panelWidth-1]
		f(k, &a[0], rowStride, stepA, &b[0], stepB, &c[0], strideC, add)
	}
}

func wideTileOf(rows int, f func(k int, a *float32, rowStride, stepA int, b *float32, stepB, nextPanel int, c *float32, strideC int, add bool)) func(int, []float32, int, int, []float32, int, int, []float32, int, bool) {
	return func(k int, a []float32, rowStride, stepA int, b []float32, stepB, nextPanel int, c []float32, strideC int, add bool) {
		_, _, _ = a[(rows-1)*rowStride+(k-1)*stepA], b[nextPanel+(k-1)*stepB+panelWidth-1], c[(rows-1)*strideC+2*panelWidth-1]
		f(k, &a[0], rowStride, stepA, &b[0], stepB, nextPanel, &c[0], strideC, add)
	}
}

func transposeVector(from []float32, stride, k int, to []float32) {
	if k > 0 {
		_, _ = from[(panelWidth-1)*stride+k-1], to[panelWidth*k-1]
		transposeAVX2(&from[0], stride, k, &to[0])
	}
}

func squaresOf(f func(x *float32, d int, out *float32, rows int)) func([]float32, int, []float32) {
	return func(x []float32, d int, out []float32) {
		if len(out) > 0 {
			_ = x[len(out)*d-1]
			f(&x[0], d, &out[0], len(out))
		}
	}
}

func gapsOf(f func(x *float32, d int, inv, p *float32, class *int32, out *float32, rows int)) func([]float32, int, []float32, []float32, []int32, []float32) {
	return func(x []float32, d int, inv, p []float32, class []int32, out []float32) {
		n := len(out)
		if n == 0 {
			return
		}
		_, inv, class = x[n*d-1], inv[:n], class[:n]
		for _, k := range class {
			_ = p[int(k)*d : (int(k)+1)*d]
		}
		f(&x[0], d, &inv[0], &p[0], &class[0], &out[0], n)
	}
}

func peaksOf(f func(v *float32, n, stride int, tie, limit, out *float32, rows int)) func([]float32, int, int, []float32, []float32, []peak) {
	return func(v []float32, n, stride int, tie, limit []float32, out []peak) {
		if rows := len(out); rows > 0 {
			_, tie, limit = v[(rows-1)*stride+n-1], tie[:rows], limit[:rows]
			f(&v[0], n, stride, &tie[0], &limit[0], (*float32)(unsafe.Pointer(&out[0])), rows)
		}
	}
}

func rootsOf(f func(v *float32, n, stride int, a, b *float32, s float32, rows int)) func([]float32, int, int, []float32, []float32, float32) {
	return func(v []float32, n, stride int, a, b []float32, s float32) {
		if rows := len(a); rows > 0 {
			_, b = v[(rows-1)*stride+n-1], b[:rows]
			f(&v[0], n, stride, &a[0], &b[0], s, rows)
		}
	}
}

func sumsOf(f func(v *float32, n, stride int, out *float32, rows int)) func([]float32, int, int, []sums) {
	return func(v []float32, n, stride int, out []sums) {
		if rows := len(out); rows > 0 {
			_ = v[(rows-1)*stride+n-1]
			f(&v[0], n, stride, (*float32)(unsafe.Pointer(&out[0])), rows)
		}
	}
}

func expsOf(f func(v *float32, n int, scale float32, out *float32, rows int)) func([]float32, int, float32, []expSum) {
	return func(v []float32, n int, scale float32, out []expSum) {
		if rows := len(out); rows > 0 {
			_ = v[rows*n-1]
			f(&v[0], n, scale, (*float32)(unsafe.Pointer(&out[0])), rows)
		}
	}
}

func scaleRowsOf(f func(v *float32, n int, by *float32, rows int)) func([]float32, int, []float32) {
	return func(v []float32, n int, by []float32) {
		if rows := len(by); rows > 0 {
			_ = v[rows*n-1]
			f(&v[0], n, &by[0], rows)
		}
	}
}

func divideRowsOf(f func(grad, d *float32, n int, factor float32, out *float32, rows int)) func([]float32, []float32, int, float32, []float32) {
	return func(g, d []float32, n int, factor float32, out []float32) {
		if rows := len(out); rows > 0 {
			_, _ = g[rows*n-1], d[rows*n-1]
			f(&g[0], &d[0], n, factor, &out[0], rows)
		}
	}
}

func tangentsOf(f func(grad, x *float32, d int, inv *float32, rows int)) func([]float32, []float32, int, []float32) {
	return func(g, x []float32, d int, inv []float32) {
		if rows := len(inv); rows > 0 {
			_, _ = g[rows*d-1], x[rows*d-1]
			f(&g[0], &x[0], d, &inv[0], rows)
		}
	}
}

func adamWOf(f func(value, grad, m, v *float32, n int, rate *float32)) func([]float32, []float32, []float32, []float32, *AdamWRate) {
	return func(value, grad, m, v []float32, rate *AdamWRate) {
		if n := len(grad); n > 0 {
			value, m, v = value[:n], m[:n], v[:n]
			f(&value[0], &grad[0], &m[0], &v[0], n, &rate.newM)
		}
	}
}

func productsVector(x []float64, slope float64) (up, down float64) {
	return productsAVX2(&x[0], len(x), slope, 1+slope)
}
