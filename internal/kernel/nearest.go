package kernel

import "math"

// rowBlock is how many rows share one pass over the prototypes.
const rowBlock = 4

// A Workspace is the scratch of one caller. Its zero value is ready; it grows
// once, and must not be used by two calls at a time.
type Workspace struct {
	unit     []float32 // rowBlock normalised rows
	logits   logitScratch
	multiply multiplyScratch
	training trainingScratch
	bank     bankScratch
}

// Nearest finds the nearest prototype of each row of x, n×D row-major, where n
// is len(dist). For row i
//
//	dist[i]  = min_c ‖x_i/‖x_i‖ − p_c/‖p_c‖‖    in [0, 2]
//	class[i] = the c that attains it; of equals the lowest
//
// A row that holds a NaN or an infinity, or whose norm is under MinNorm, has
// no direction: its dist is NaN and its class −1.
//
// The search is by the largest cosine in float32. The winner's distance is
// computed again as the norm of the difference, since sqrt(2−2·cos) loses all
// its digits near 0. Where the runner-up is within rounding of the winner, the
// row is searched again in float64.
func (p *Prototypes) Nearest(w *Workspace, x []float32, dist []float32, class []int32) {
	d := p.d
	n := len(dist)
	if len(x) != n*d || len(class) != n {
		panic("kernel: Nearest: x, dist and class do not fit each other")
	}
	if len(w.unit) < rowBlock*d {
		w.unit = make([]float32, rowBlock*d)
	}
	// Two float32 dot products of unit vectors differ from their true values
	// by a few u·√D each; beyond this gap the order is certain.
	tie := float32(8 * 0x1p-24 * math.Sqrt(float64(d)))
	var best, second [rowBlock]float32
	var arg [rowBlock]int32
	for start := 0; start < n; start += rowBlock {
		rows := min(rowBlock, n-start)
		var inv [rowBlock]float64
		for r := range rowBlock {
			unit := w.unit[r*d : (r+1)*d]
			row := x[(start+min(r, rows-1))*d:][:d]
			norm := math.Sqrt(sumOfSquares(row))
			if !(norm >= MinNorm) || math.IsInf(norm, 0) {
				clear(unit)
				continue
			}
			inv[r] = 1 / norm
			for j, v := range row {
				unit[j] = float32(float64(v) * inv[r])
			}
		}
		best = [rowBlock]float32{-2, -2, -2, -2}
		second = best
		arg = [rowBlock]int32{}
		for c := range p.c {
			dots := dot4(w.unit, p.unit[c*d:(c+1)*d])
			for r, v := range dots {
				if v > best[r] {
					second[r], best[r], arg[r] = best[r], v, int32(c)
				} else if v > second[r] {
					second[r] = v
				}
			}
		}
		for r := range rows {
			if inv[r] == 0 {
				dist[start+r], class[start+r] = float32(math.NaN()), -1
				continue
			}
			row := x[(start+r)*d:][:d]
			if best[r]-second[r] < tie {
				arg[r] = p.rescan(row, inv[r])
			}
			dist[start+r] = float32(math.Sqrt(p.squaredDistance(row, inv[r], int(arg[r]))))
			class[start+r] = arg[r]
		}
	}
}

// dot4 returns the products of p with the four rows of unit.
func dot4(unit, p []float32) [rowBlock]float32 {
	d := len(p)
	a, b, c, e := unit[:d], unit[d:][:d], unit[2*d:][:d], unit[3*d:][:d]
	var s0, s1, s2, s3 float32
	for j, v := range p {
		s0 += a[j] * v
		s1 += b[j] * v
		s2 += c[j] * v
		s3 += e[j] * v
	}
	return [rowBlock]float32{s0, s1, s2, s3}
}

// rescan returns the nearest prototype of row in float64, the lowest of equals.
func (p *Prototypes) rescan(row []float32, inv float64) int32 {
	nearest, least := 0, math.Inf(1)
	for c := range p.c {
		if s := p.squaredDistance(row, inv, c); s < least {
			nearest, least = c, s
		}
	}
	return int32(nearest)
}

// squaredDistance is ‖row·inv − p_c/‖p_c‖‖² in float64.
func (p *Prototypes) squaredDistance(row []float32, inv float64, c int) float64 {
	proto, pinv := p.raw[c*p.d:(c+1)*p.d], p.inv[c]
	var s float64
	for j, v := range row {
		diff := float64(v)*inv - float64(proto[j])*pinv
		s += diff * diff
	}
	return s
}
