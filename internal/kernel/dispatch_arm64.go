package kernel

import (
	"math"
	"unsafe"
)

// neon is for every arm64 CPU. The sums over lanes and the tiles are assembly;
// what meets once a row is Go.
var neon = Implementation{
	name: "neon",
	nearest: &nearestKernel{
		lanes:     neonLanes,
		block:     768 << 10,
		panels:    []panelKernel{wide(8, tileKernel{8, panel8x8NEON}, tileKernel{1, panel1x8NEON})},
		norms:     normsNEON,
		finish:    finishNEON,
		distances: distancesNEON,
	},
	loops: neonLoops(),
}

const neonLanes = 4

// native returns what this CPU can run, the fastest first.
func native() []*Implementation { return []*Implementation{&neon} }

func neonLoops() *loops {
	l := goLoops
	l.rows = 6
	l.tile = func(k int, a []float32, rowStride, stepA int, b []float32, stepB int, c []float32, strideC int, add bool) {
		_, _, _ = a[5*rowStride+(k-1)*stepA], b[(k-1)*stepB+panelWidth-1], c[5*strideC+panelWidth-1]
		tileNEON(k, &a[0], rowStride, stepA, &b[0], stepB, &c[0], strideC, add)
	}
	l.float16, l.bfloat16 = widenOf(float16NEON, float16Go), widenOf(bfloat16NEON, bfloat16Go)
	return &l
}

// tail copies the values of x that fill no block of 64 into pad, if there are
// any: zeros change no sum.
func tail(pad *laneSums, x []float32) *float32 {
	rest := x[len(x)&^(lanesOfSums-1):]
	if len(rest) == 0 {
		return nil
	}
	copy(pad[:], rest)
	return &pad[0]
}

func squaredRow(x []float32, inv float32, p []float32) float32 {
	var xs, ps laneSums
	return squaredNEON(&x[0], &p[0], len(x)/lanesOfSums, inv, tail(&xs, x), tail(&ps, p))
}

func normsNEON(x *float32, n, d int, inv, state, _ *float32) (bad int) {
	values, invs := unsafe.Slice(x, n*d), unsafe.Slice(inv, n)
	states := unsafe.Slice((*[3][neonLanes]float32)(unsafe.Pointer(state)), n)
	lowest := float32(math.Inf(-1))
	lanes := [neonLanes]float32{lowest, lowest, lowest, lowest}
	for i := range n {
		row := values[i*d:][:d]
		var pad laneSums
		s := squaresNEON(&row[0], d/lanesOfSums, tail(&pad, row))
		if !(s >= leastSum && s <= mostSum) {
			bad++
		}
		invs[i] = 1 / sqrt32(s)
		states[i] = [3][neonLanes]float32{lanes, lanes, {}}
	}
	return bad
}

func finishNEON(x *float32, n, d int, inv, state, unit *float32, last int, tie float32, dist *float32, class, near *int32, _ *float32) (count int) {
	values, invs, units := unsafe.Slice(x, n*d), unsafe.Slice(inv, n), unsafe.Slice(unit, (last+1)*d)
	states := unsafe.Slice((*[3][neonLanes]float32)(unsafe.Pointer(state)), n)
	dists, classes, nears := unsafe.Slice(dist, n), unsafe.Slice(class, n), unsafe.Slice(near, n)
	for i := range n {
		s := &states[i]
		best, second, c := s[0][0], s[1][0], math.Float32bits(s[2][0])
		for lane := 1; lane < neonLanes; lane++ {
			if v := s[0][lane]; v > best {
				best, second, c = v, max(best, s[1][lane]), math.Float32bits(s[2][lane])
			} else {
				second = max(second, v)
			}
		}
		// A row that is not finite can have a lane without prototype as its class.
		classes[i] = int32(min(c, uint32(last)))
		squared := squaredRow(values[i*d:][:d], invs[i], units[int(classes[i])*d:][:d])
		dists[i] = sqrt32(squared)
		if (best-second)*invs[i] < tie || squared < tinySquare {
			nears[count] = int32(i)
			count++
		}
	}
	return count
}

func distancesNEON(x *float32, d int, inv float32, unit *float32, c int, out *float32) {
	row, units, outs := unsafe.Slice(x, d), unsafe.Slice(unit, c*d), unsafe.Slice(out, c)
	for i := range outs {
		outs[i] = squaredRow(row, inv, units[i*d:][:d])
	}
}
