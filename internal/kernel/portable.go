package kernel

import (
	"math"
	"unsafe"
)

// The pure-Go twins of the assembly: what each kernel means, and what runs
// where there is no assembly.

// portable is the implementation in Go.
var portable = Implementation{
	name: "go",
	nearest: &nearestKernel{
		lanes:     1,
		block:     768 << 10,
		panels:    []panelKernel{wide(1, tileKernel{4, panel4Go}, tileKernel{1, panel1Go})},
		norms:     normsGo,
		finish:    finishGo,
		distances: rowDistancesGo,
	},
	loops: &goLoops,
}

// lanesOfSums is how many partial sums make up a norm or a distance. Value j
// goes into lane j mod 64, in order; then lanes l and l+32 are added, l and
// l+16, and so on. This order is the definition of their last bits, and so is
// that no product is fused with a sum: each conversion to float32 says so.
const lanesOfSums = 64

type laneSums [lanesOfSums]float32

func (s *laneSums) total() float32 {
	for h := lanesOfSums / 2; h > 0; h /= 2 {
		for l := range h {
			s[l] += s[l+h]
		}
	}
	return s[0]
}

// sumInLanes is Σ x_j².
func sumInLanes(x []float32) float32 {
	var s laneSums
	for ; len(x) >= lanesOfSums; x = x[lanesOfSums:] {
		for l, v := range x[:lanesOfSums] {
			s[l] += float32(v * v)
		}
	}
	for l, v := range x {
		s[l] += float32(v * v)
	}
	return s.total()
}

// squaredInLanes is Σ (x_j·inv − p_j)².
func squaredInLanes(x []float32, inv float32, p []float32) float32 {
	var s laneSums
	p = p[:len(x)]
	for ; len(x) >= lanesOfSums; x, p = x[lanesOfSums:], p[lanesOfSums:] {
		q := p[:lanesOfSums]
		for l, v := range x[:lanesOfSums] {
			diff := float32(v*inv) - q[l]
			s[l] += float32(diff * diff)
		}
	}
	for l, v := range x {
		diff := float32(v*inv) - p[l]
		s[l] += float32(diff * diff)
	}
	return s.total()
}

func normsGo(x *float32, n, d int, inv, state, _ *float32) (bad int) {
	values, invs, states := unsafe.Slice(x, n*d), unsafe.Slice(inv, n), unsafe.Slice(state, 3*n)
	lowest := float32(math.Inf(-1))
	for i := range n {
		s := sumInLanes(values[i*d:][:d])
		if !(s >= leastSum && s <= mostSum) {
			bad++
		}
		invs[i] = 1 / sqrt32(s)
		states[3*i], states[3*i+1], states[3*i+2] = lowest, lowest, math.Float32frombits(0)
	}
	return bad
}

func panel4Go(x *float32, tiles, d, count int, _, panel, partial *float32, part int, state *float32, class int, _ *float32, _ int) {
	p := unsafe.Slice(panel, count)
	for t := range tiles {
		x := unsafe.Slice(x, (4*tiles-1)*d+count)[4*t*d:]
		a, b, c, e := x[:count], x[d:][:count], x[2*d:][:count], x[3*d:][:count]
		var s0, s1, s2, s3 float32
		for j, v := range p {
			s0 += a[j] * v
			s1 += b[j] * v
			s2 += c[j] * v
			s3 += e[j] * v
		}
		for r, s := range [4]float32{s0, s1, s2, s3} {
			update(4*t+r, s, partial, part, state, class)
		}
	}
}

func panel1Go(x *float32, tiles, d, count int, _, panel, partial *float32, part int, state *float32, class int, _ *float32, _ int) {
	p := unsafe.Slice(panel, count)
	for t := range tiles {
		var s float32
		for j, v := range unsafe.Slice(x, (tiles-1)*d+count)[t*d:][:count] {
			s += v * p[j]
		}
		update(t, s, partial, part, state, class)
	}
}

// update takes the dot product of a row into its state of one lane.
func update(row int, v float32, partial *float32, part int, state *float32, class int) {
	if part&partFirst == 0 {
		v += unsafe.Slice(partial, row+1)[row]
	}
	if part&partLast == 0 {
		unsafe.Slice(partial, row+1)[row] = v
		return
	}
	s := unsafe.Slice(state, 3*row+3)[3*row:]
	if best := s[0]; v > best {
		s[0], s[1], s[2] = v, best, math.Float32frombits(uint32(class))
	} else if v > s[1] {
		s[1] = v
	}
}

func finishGo(x *float32, n, d int, inv, state, unit *float32, last int, tie float32, dist *float32, class, near *int32, _ *float32) (count int) {
	values, invs, states, units := unsafe.Slice(x, n*d), unsafe.Slice(inv, n), unsafe.Slice(state, 3*n), unsafe.Slice(unit, (last+1)*d)
	dists, classes, nears := unsafe.Slice(dist, n), unsafe.Slice(class, n), unsafe.Slice(near, n)
	for i := range n {
		c := math.Float32bits(states[3*i+2])
		classes[i] = int32(c)
		squared := squaredInLanes(values[i*d:][:d], invs[i], units[int(c)*d:][:d])
		dists[i] = sqrt32(squared)
		if (states[3*i]-states[3*i+1])*invs[i] < tie || squared < tinySquare {
			nears[count] = int32(i)
			count++
		}
	}
	return count
}

func rowDistancesGo(x *float32, d int, inv float32, unit *float32, c int, out *float32) {
	row, units, outs := unsafe.Slice(x, d), unsafe.Slice(unit, c*d), unsafe.Slice(out, c)
	for i := range outs {
		outs[i] = squaredInLanes(row, inv, units[i*d:][:d])
	}
}
