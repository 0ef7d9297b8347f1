// Command nearest generates the kernels of Prototypes.Nearest, for AVX-512 and
// AVX2. Their twin in Go is internal/kernel/portable.go.
package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Predicates of VCMPPS.
const (
	equal       = U8(0x00)
	lessOrEqual = U8(0x12)
	greater     = U8(0x1e)
	lanesOfSums = 64 // partial sums of norms and distances; part of their definition
)

// An isa is an instruction set, as far as the kernels differ.
type isa interface {
	name() string
	bytes() int // of a vector
	panels() []shape
	vector() reg.VecVirtual
	zero(v reg.VecVirtual)
	// masked loads the first rem of 64 values vector by vector, and zeros for
	// the others.
	masked(rem reg.GPVirtual) []func(m Mem, v reg.VecVirtual)
	// total adds up 64 lanes, halving: l and l+32, then l and l+16, and so on.
	total(sums []reg.VecVirtual) reg.VecVirtual
	// update takes the dot products of a row, of these classes, into its state.
	update(row []reg.VecVirtual, state Mem, classes []reg.VecVirtual)
	// winner reduces a state to the largest dot product (in the lowest lane),
	// a bit mask of the lanes that hold it, and the runner-up.
	winner(state Mem) (best reg.VecVirtual, mask reg.GPVirtual, second reg.VecVirtual)
}

// The state of a row while panels pass: in each lane the largest dot product so
// far, the next largest, and the class of the largest.
const (
	stateBest = iota
	stateSecond
	stateClass
	stateVectors
)

// A shape is a number of prototypes in a panel, with the numbers of rows in a
// tile that there are functions for. Where it is not of whole vectors, lanes are
// dimensions, not prototypes: see narrowProducts.
type shape struct {
	prototypes int
	heights    []int
}

var sequence int

func label(name string) string { sequence++; return fmt.Sprintf("%s%d", name, sequence) }

// at is the address of row r of a tile, at byte offset disp: rows three by three
// from one pointer, since an address can add a stride once or twice.
func at(pointers []reg.GPVirtual, stride reg.GPVirtual, r, disp int) Mem {
	m := Mem{Base: pointers[r/3], Disp: disp}
	if r%3 > 0 {
		m.Index, m.Scale = stride, uint8(r%3)
	}
	return m
}

// panel generates a function that multiplies tiles of height rows by one panel
// of so many prototypes, or by some of its dimensions, and at the last takes
// the products into the rows' states.
func panel(a isa, prototypes, height int) {
	lanes := a.bytes() / 4
	width := (prototypes + lanes - 1) / lanes
	name := fmt.Sprintf("panel%dx%d%s", height, prototypes, a.name())
	TEXT(name, NOSPLIT, "func(x *float32, tiles, d, count int, bias, panel, partial *float32, part int, state *float32, class int, next *float32, step int)")
	Pragma("noescape")
	Doc(fmt.Sprintf("%s multiplies tiles > 0 times %d rows by a panel of %d prototypes: see tileKernel.", name, height, prototypes))
	x := param("x")
	tiles := param("tiles")
	state := param("state")
	partial := param("partial")
	next := param("next")
	step := param("step")
	stride := param("d")
	SHLQ(Imm(2), stride)
	Label("tile")
	pointers := make([]reg.GPVirtual, (height+2)/3)
	for i := range pointers {
		pointers[i] = GP64()
		if i == 0 {
			MOVQ(x, pointers[0])
		} else { // three rows on
			LEAQ(Mem{Base: pointers[i-1], Index: stride, Scale: 2}, pointers[i])
			ADDQ(stride, pointers[i])
		}
	}
	var sums [][]reg.VecVirtual
	if prototypes%lanes == 0 {
		sums = products(a, width, height, pointers, stride, next, step)
	} else {
		sums = narrowProducts(height, pointers, stride, next, step)
	}
	each := func(f func(v reg.VecVirtual, m Mem)) {
		for r, row := range sums {
			for i, v := range row {
				f(v, Mem{Base: partial, Disp: (r*width + i) * a.bytes()})
			}
		}
	}
	first, last, done := label("first"), label("last"), label("done")
	part := param("part")
	TESTQ(U32(partFirst), part)
	JNZ(LabelRef(first))
	each(func(v reg.VecVirtual, m Mem) { VADDPS(m, v, v) })
	Label(first)
	TESTQ(U32(partLast), part)
	JNZ(LabelRef(last))
	each(func(v reg.VecVirtual, m Mem) { VMOVUPS(v, m) })
	ADDQ(U32(uint32(height*width*a.bytes())), partial)
	JMP(LabelRef(done))
	Label(last)
	ADDQ(U32(uint32(height*width*a.bytes())), partial)
	class := param("class")
	var numbers []reg.VecVirtual
	for i := range width {
		numbers = append(numbers, classes(a, class, i))
	}
	for r, row := range sums {
		a.update(row, Mem{Base: state, Disp: r * stateVectors * a.bytes()}, numbers)
	}
	ADDQ(U32(uint32(height*stateVectors*a.bytes())), state)
	Label(done)
	rows := GP64()
	IMUL3Q(U32(uint32(height)), stride, rows)
	ADDQ(rows, x)
	DECQ(tiles)
	JNZ(LabelRef("tile"))
	VZEROUPPER()
	RET()
}

// Bits of part: see tileKernel.
const (
	partFirst = 1
	partLast  = 2
)

// products generates the dot products of height rows with a panel. Few rows get
// several chains of sums each, so that enough are in flight.
func products(a isa, width, height int, pointers []reg.GPVirtual, stride, next, step reg.GPVirtual) [][]reg.VecVirtual {
	phases := 1
	for phases < 4 && height*width*phases < 8 {
		phases *= 2
	}
	bias := param("bias")
	sums := make([][][]reg.VecVirtual, phases) // phase, row, vector
	for p := range sums {
		sums[p] = make([][]reg.VecVirtual, height)
		for r := range height {
			for i := range width {
				v := a.vector()
				if p == 0 {
					VMOVUPS(Mem{Base: bias, Disp: i * a.bytes()}, v)
				} else {
					a.zero(v)
				}
				sums[p][r] = append(sums[p][r], v)
			}
		}
	}
	w := param("panel")
	multiply := func(step int) {
		line := make([]reg.VecVirtual, width)
		for i := range line {
			line[i] = a.vector()
			VMOVUPS(Mem{Base: w, Disp: (step*width + i) * a.bytes()}, line[i])
		}
		for r := range height {
			value := a.vector()
			VBROADCASTSS(at(pointers, stride, r, 4*step), value)
			for i := range line {
				VFMADD231PS(line[i], value, sums[step%phases][r][i])
			}
		}
	}
	advance := func(values int) {
		for _, p := range pointers {
			ADDQ(Imm(uint64(4*values)), p)
		}
		ADDQ(U32(uint32(values*width*a.bytes())), w)
	}
	four, one, rest, end := label("four"), label("one"), label("rest"), label("end")
	count := param("count")
	SUBQ(Imm(4), count)
	JLT(LabelRef(one))
	Label(four)
	for k := range 4 {
		multiply(k)
		if k%2 == 0 {
			PREFETCHT1(Mem{Base: next, Disp: 32 * k})
		}
	}
	ADDQ(step, next)
	advance(4)
	SUBQ(Imm(4), count)
	JGE(LabelRef(four))
	Label(one)
	ADDQ(Imm(4), count)
	JZ(LabelRef(end))
	Label(rest)
	multiply(0)
	advance(1)
	DECQ(count)
	JNZ(LabelRef(rest))
	Label(end)
	for step := phases / 2; step > 0; step /= 2 {
		for p := range step {
			for r := range height {
				for i := range width {
					VADDPS(sums[p+step][r][i], sums[p][r][i], sums[p][r][i])
				}
			}
		}
	}
	return sums[0]
}

// numbers is the data 0, 1, ... 31.
var numbers Mem

// ones is 64 words of ones, then 64 of zeros: masks of AVX2.
var ones Mem

// classes returns the class numbers of vector i of a panel that begins at first.
func classes(a isa, first reg.GPVirtual, i int) reg.VecVirtual {
	v := a.vector()
	VMOVD(low(first), v.AsX())
	VPBROADCASTD(v.AsX(), v)
	VPADDD(numbers.Offset(i*a.bytes()), v, v)
	return v
}

// param loads an integer or a pointer.
func param(name string) reg.GPVirtual { return Load(Param(name), GP64()).(reg.GPVirtual) }

// address is where a parameter is. avo would load a float by an SSE instruction,
// which costs dozens of cycles while the upper halves of registers are in use.
func address(name string) Mem {
	p, err := Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	return p.Addr
}

func low(r reg.GPVirtual) Op { return r.As32() }

// sums generates a loop over a row of d values: term makes, from loads at the
// same offset of each of the pointers, a vector to add to a sum. Lane l of 64
// adds up, in order, the values j with j mod 64 = l.
// Where next is given, it prefetches a line of 64 bytes of it for each 64 values.
func sums(a isa, d reg.GPVirtual, next reg.GPVirtual, rows []reg.GPVirtual, term func(load func(row int, v reg.VecVirtual), sum reg.VecVirtual)) reg.VecVirtual {
	lines := 4 * lanesOfSums / a.bytes()
	acc := make([]reg.VecVirtual, lines)
	for i := range acc {
		acc[i] = a.vector()
		a.zero(acc[i])
	}
	offset, count := GP64(), GP64()
	XORQ(offset, offset)
	MOVQ(d, count)
	loop, tail, end := label("sum"), label("tail"), label("end")
	SUBQ(Imm(lanesOfSums), count)
	JLT(LabelRef(tail))
	Label(loop)
	if next != nil {
		PREFETCHT1(Mem{Base: next})
		ADDQ(Imm(64), next)
	}
	for i := range lines {
		term(func(row int, v reg.VecVirtual) {
			VMOVUPS(Mem{Base: rows[row], Index: offset, Scale: 1, Disp: i * a.bytes()}, v)
		}, acc[i])
	}
	ADDQ(U32(4*lanesOfSums), offset)
	SUBQ(Imm(lanesOfSums), count)
	JGE(LabelRef(loop))
	Label(tail)
	ADDQ(Imm(lanesOfSums), count)
	JZ(LabelRef(end))
	for i, load := range a.masked(count) {
		term(func(row int, v reg.VecVirtual) {
			load(Mem{Base: rows[row], Index: offset, Scale: 1, Disp: i * a.bytes()}, v)
		}, acc[i])
	}
	Label(end)
	return a.total(acc)
}

// squaredDistance generates ‖x·inv − p‖² by sums.
func squaredDistance(a isa, d, next, x, p reg.GPVirtual, inv reg.VecVirtual) reg.VecVirtual {
	return sums(a, d, next, []reg.GPVirtual{x, p}, func(load func(int, reg.VecVirtual), sum reg.VecVirtual) {
		v, w := a.vector(), a.vector()
		load(0, v)
		VMULPS(inv, v, v)
		load(1, w)
		VSUBPS(w, v, v)
		VMULPS(v, v, v)
		VADDPS(v, sum, sum)
	})
}

func norms(a isa) {
	name := "norms" + a.name()
	TEXT(name, NOSPLIT, "func(x *float32, n, d int, inv, state, next *float32) (bad int)")
	Pragma("noescape")
	Doc(name+" sets inv to one over the norms of n > 0 rows of x. It returns how many rows have a",
		"sum of squares outside [leastSum, mostSum], whose inv is not to be used. It empties their states.")
	x := param("x")
	n := param("n")
	d := param("d")
	inv := param("inv")
	next := param("next")
	bad, one, bits, stride := GP64(), XMM(), GP32(), GP64()
	state := param("state")
	XORQ(bad, bad)
	MOVL(U32(0x3f800000), bits) // 1
	VMOVD(bits, one)
	lowest, zero := a.vector(), a.vector()
	MOVL(U32(0xff800000), bits) // -Inf
	VMOVD(bits, lowest.AsX())
	VBROADCASTSS(lowest.AsX(), lowest)
	a.zero(zero)
	MOVQ(d, stride)
	SHLQ(Imm(2), stride)
	Label("row")
	total := sums(a, d, next, []reg.GPVirtual{x}, func(load func(int, reg.VecVirtual), sum reg.VecVirtual) {
		v := a.vector()
		load(0, v)
		VMULPS(v, v, v)
		VADDPS(v, sum, sum)
	}).AsX()
	// In the order of unsigned integers NaN and the negative come after all
	// that is wanted.
	sum, out := GP32(), GP32()
	VMOVD(total, sum)
	SUBL(U32(leastBits), sum)
	XORL(out, out)
	CMPL(sum, U32(mostBits-leastBits))
	SETHI(out.As8())
	ADDQ(out.As64(), bad)
	root := XMM()
	VSQRTSS(total, total, root)
	VDIVSS(root, one, root)
	VMOVSS(root, Mem{Base: inv})
	VMOVUPS(lowest, Mem{Base: state, Disp: stateBest * a.bytes()})
	VMOVUPS(lowest, Mem{Base: state, Disp: stateSecond * a.bytes()})
	VMOVUPS(zero, Mem{Base: state, Disp: stateClass * a.bytes()})
	ADDQ(U32(uint32(stateVectors*a.bytes())), state)
	ADDQ(Imm(4), inv)
	ADDQ(stride, x)
	DECQ(n)
	JNZ(LabelRef("row"))
	VZEROUPPER()
	Store(bad, ReturnIndex(0))
	RET()
}

// The bounds between which a sum of squares is exact enough: 2^-60 and 2^100.
const (
	leastBits = (127 - 60) << 23
	mostBits  = (127 + 100) << 23
	tinyBits  = (127 - 14) << 23 // of tinySquare, 2^-14
)

func finish(a isa) {
	name := "finish" + a.name()
	TEXT(name, NOSPLIT, "func(x *float32, n, d int, inv, state, unit *float32, last int, tie float32, dist *float32, class, near *int32, next *float32) (count int)")
	Pragma("noescape")
	Doc(name+" sets dist and class of n > 0 rows of x from their states, and writes to near the",
		"numbers of the rows whose runner-up is nearer than tie, or whose squared distance is under",
		"tinySquare. It returns how many these are.",
		"last is the highest class.")
	x := param("x")
	n := param("n")
	d := param("d")
	state := param("state")
	next := param("next")
	count, i, stride := GP64(), GP64(), GP64()
	XORQ(count, count)
	XORQ(i, i)
	MOVQ(d, stride)
	SHLQ(Imm(2), stride)
	Label("row")
	best, mask, second := a.winner(Mem{Base: state})
	// Where several lanes hold the largest, the runner-up equals it.
	several, close := GP32(), GP32()
	XORL(close, close)
	LEAL(Mem{Base: mask, Disp: -1}, several)
	TESTL(low(mask), several)
	SETNE(several.As8())
	inv := param("inv")
	gap := XMM()
	VSUBSS(second.AsX(), best.AsX(), gap)
	VMULSS(Mem{Base: inv, Index: i, Scale: 4}, gap, gap)
	tie := XMM()
	VMOVSS(address("tie"), tie)
	VUCOMISS(gap, tie)
	SETHI(close.As8())
	ORL(several, close)
	// A row that is not finite has no lane with the largest; the clamps keep it in bounds.
	lane, winner, last := GP32(), GP32(), GP64()
	ORL(U32(uint32(1<<(a.bytes()/4-1))), low(mask))
	BSFL(low(mask), lane)
	MOVL(Mem{Base: state, Index: lane.As64(), Scale: 4, Disp: stateClass * a.bytes()}, winner)
	Load(Param("last"), last)
	CMPL(winner, last.As32())
	CMOVLHI(last.As32(), winner)
	class := param("class")
	MOVL(winner, Mem{Base: class, Index: i, Scale: 4})
	p := param("unit")
	rows := GP64()
	MOVQ(winner.As64(), rows)
	IMULQ(stride, rows)
	ADDQ(rows, p)
	factor := a.vector()
	VBROADCASTSS(Mem{Base: inv, Index: i, Scale: 4}, factor)
	total := squaredDistance(a, d, next, x, p, factor).AsX()
	squared := GP32()
	VMOVD(total, squared)
	CMPL(squared, U32(tinyBits))
	SETCS(squared.As8())
	ORL(squared, close)
	ANDL(Imm(1), close)
	near := param("near")
	MOVL(i.As32(), Mem{Base: near, Index: count, Scale: 4})
	ADDQ(close.As64(), count)
	VSQRTSS(total, total, total)
	dist := param("dist")
	VMOVSS(total, Mem{Base: dist, Index: i, Scale: 4})
	ADDQ(stride, x)
	ADDQ(U32(uint32(stateVectors*a.bytes())), state)
	INCQ(i)
	CMPQ(i, n)
	JLT(LabelRef("row"))
	VZEROUPPER()
	Store(count, ReturnIndex(0))
	RET()
}

func distances(a isa) {
	name := "distances" + a.name()
	TEXT(name, NOSPLIT, "func(x *float32, d int, inv float32, unit *float32, c int, out *float32)")
	Pragma("noescape")
	Doc(name + " sets out to the squared distances of the row x, times inv, to c > 0 rows of unit.")
	x := param("x")
	d := param("d")
	factor := a.vector()
	VBROADCASTSS(address("inv"), factor)
	unit := param("unit")
	c := param("c")
	out := param("out")
	Label("row")
	total := squaredDistance(a, d, nil, x, unit, factor).AsX()
	VMOVSS(total, Mem{Base: out})
	ADDQ(Imm(4), out)
	LEAQ(Mem{Base: unit, Index: d, Scale: 4}, unit)
	DECQ(c)
	JNZ(LabelRef("row"))
	VZEROUPPER()
	RET()
}

func main() {
	ConstraintExpr("amd64")
	numbers = GLOBL("numbers", RODATA|NOPTR)
	for i := range 32 {
		DATA(4*i, U32(uint32(i)))
	}
	ones = GLOBL("ones", RODATA|NOPTR)
	for i := range 2 * lanesOfSums {
		DATA(4*i, U32([]uint32{0xffffffff, 0}[i/lanesOfSums]))
	}
	for _, a := range []isa{avx512{}, avx2{}} {
		norms(a)
		for _, p := range a.panels() {
			for _, height := range p.heights {
				panel(a, p.prototypes, height)
			}
		}
		finish(a)
		distances(a)
	}
	Generate()
}
