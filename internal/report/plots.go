package report

import (
	"bytes"
	"errors"
	"fmt"
	"html/template"
	"image/color"
	"math"
	"regexp"
	"slices"

	"github.com/oodmon/oodmon/trainer"
	"gonum.org/v1/gonum/mat"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// The two kinds are told apart without telling red from green.
var (
	inColor   = color.NRGBA{0x1f, 0x6f, 0xb4, 0xff}
	outColor  = color.NRGBA{0xd9, 0x5f, 0x0e, 0xff}
	greyColor = color.NRGBA{0x80, 0x80, 0x80, 0xff}
	ink       = color.NRGBA{0x33, 0x33, 0x33, 0xff}
)

const width, height = 5.2 * vg.Inch, 3.7 * vg.Inch

func newPlot(x, y string) *plot.Plot {
	p := plot.New()
	p.X.Label.Text, p.Y.Label.Text = x, y
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		a.Label.TextStyle.Font.Size, a.Tick.Label.Font.Size = 11, 9
		a.Color, a.Tick.Color, a.Tick.Label.Color, a.Label.TextStyle.Color = greyColor, greyColor, ink, ink
	}
	p.BackgroundColor = color.Transparent
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.NRGBA{0, 0, 0, 0x18}, color.NRGBA{0, 0, 0, 0x18}
	p.Add(grid)
	return p
}

// sized matches the size that the plotter gives a picture, and fonts what it
// calls them: the page scales the one and chooses the other.
var (
	sized = regexp.MustCompile(`<svg width="[^"]*" height="[^"]*"`)
	fonts = regexp.MustCompile(`font-family:[^;"]*;font-weight:[^;"]*;font-style:[^;"]*`)
)

// svg draws the plot as an element for the page, with what it shows in words.
func svg(p *plot.Plot, title string) (template.HTML, error) {
	c := vgsvg.New(width, height)
	p.Draw(draw.New(c))
	var buf bytes.Buffer
	if _, err := c.WriteTo(&buf); err != nil {
		return "", fmt.Errorf("draw: %w", err)
	}
	text := buf.Bytes()
	start := bytes.Index(text, []byte("<svg"))
	if start < 0 {
		return "", errors.New("draw: there is no svg element")
	}
	text = sized.ReplaceAll(text[start:], fmt.Appendf(nil, `<svg role="img" aria-label="%s"`, template.HTMLEscapeString(title)))
	return template.HTML(fonts.ReplaceAll(text, []byte("font-family:system-ui,sans-serif"))), nil // drawn here, of numbers
}

func line(points plotter.XYs, c color.Color, w vg.Length) *plotter.Line {
	l, err := plotter.NewLine(points)
	if err != nil {
		return &plotter.Line{} // of points that are not finite, which there are none of
	}
	l.Color, l.Width = c, w
	return l
}

// plotROC draws the share of OOD records accepted against that of
// in-distribution ones.
func plotROC(inside, outside []float32, e *trainer.Evaluation) (template.HTML, error) {
	in, out := slices.Sorted(slices.Values(inside)), slices.Sorted(slices.Values(outside))
	points := plotter.XYs{{X: 0, Y: 0}}
	step := max(1, (len(in)+len(out))/800)
	i, j, n := 0, 0, 0
	for i < len(in) || j < len(out) {
		at := float32(math.Inf(1))
		if i < len(in) {
			at = in[i]
		}
		if j < len(out) && out[j] < at {
			at = out[j]
		}
		for i < len(in) && in[i] == at {
			i++
			n++
		}
		for j < len(out) && out[j] == at {
			j++
			n++
		}
		if n >= step {
			points, n = append(points, plotter.XY{X: float64(j) / float64(len(out)), Y: float64(i) / float64(len(in))}), 0
		}
	}
	points = append(points, plotter.XY{X: 1, Y: 1})
	p := newPlot("OOD records accepted", "in-distribution records accepted")
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, 1, 0, 1
	diagonal := line(plotter.XYs{{X: 0, Y: 0}, {X: 1, Y: 1}}, greyColor, .7)
	diagonal.Dashes = []vg.Length{4, 3}
	at95 := line(plotter.XYs{{X: 0, Y: .95}, {X: 1 - e.TNRAtTPR95, Y: .95}, {X: 1 - e.TNRAtTPR95, Y: 0}}, outColor, .8)
	at95.Dashes = []vg.Length{2, 2}
	roc := line(points, inColor, 1.8)
	p.Add(diagonal, at95, roc)
	return svg(p, "ROC curve")
}

// plotHistogram draws both distributions of the score as shares, with the
// threshold. The axis leaves out the farthest half a percent at either end.
func plotHistogram(inside, outside []float32, threshold float64) (template.HTML, error) {
	all := slices.Sorted(slices.Values(append(slices.Clone(inside), outside...)))
	cut := len(all) / 200
	low, high := float64(all[cut]), float64(all[len(all)-1-cut])
	low, high = math.Min(low, threshold), math.Max(high, threshold)
	if !(high > low) {
		low, high = low-.5, high+.5
	}
	pad := .03 * (high - low)
	low, high = low-pad, high+pad
	const bins = 50
	p := newPlot("score (larger is more out of distribution)", "share of records, in %")
	top := 0.
	for _, kind := range []struct {
		scores []float32
		c      color.NRGBA
	}{{inside, inColor}, {outside, outColor}} {
		var shares [bins]float64
		for _, s := range kind.scores {
			at := int(bins * (float64(s) - low) / (high - low))
			shares[max(0, min(bins-1, at))] += 100 / float64(len(kind.scores))
		}
		points := plotter.XYs{{X: low, Y: 0}}
		for i, v := range shares {
			x := low + (high-low)*float64(i)/bins
			points = append(points, plotter.XY{X: x, Y: v}, plotter.XY{X: x + (high-low)/bins, Y: v})
			top = math.Max(top, v)
		}
		points = append(points, plotter.XY{X: high, Y: 0})
		area, err := plotter.NewPolygon(points)
		if err != nil {
			return "", fmt.Errorf("draw: %w", err)
		}
		fill := kind.c
		fill.A = 0x60
		area.Color, area.LineStyle.Color, area.LineStyle.Width = fill, kind.c, 1.2
		p.Add(area)
	}
	mark := line(plotter.XYs{{X: threshold, Y: 0}, {X: threshold, Y: top * 1.08}}, ink, 1.2)
	mark.Dashes = []vg.Length{4, 2}
	p.Add(mark)
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = low, high, 0, top*1.1
	return svg(p, "Histograms of the score of in-distribution and OOD records")
}

// plotReliability draws accuracy against confidence, with how many records are
// in a bin.
func plotReliability(bins []trainer.ReliabilityBin) (template.HTML, error) {
	p := newPlot("largest probability", "accuracy")
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, 1, 0, 1
	total := 0
	for _, b := range bins {
		total += b.Records
	}
	var points plotter.XYs
	n := float64(len(bins))
	for i, b := range bins {
		if b.Records == 0 {
			continue
		}
		share := float64(b.Records) / float64(total)
		x0, x1 := float64(i)/n+.1/n, float64(i+1)/n-.1/n
		bar, err := plotter.NewPolygon(plotter.XYs{{X: x0, Y: 0}, {X: x0, Y: share}, {X: x1, Y: share}, {X: x1, Y: 0}})
		if err != nil {
			return "", fmt.Errorf("draw: %w", err)
		}
		bar.Color, bar.LineStyle.Width = color.NRGBA{0x80, 0x80, 0x80, 0x50}, 0
		p.Add(bar)
		points = append(points, plotter.XY{X: b.Confidence, Y: b.Accuracy})
	}
	diagonal := line(plotter.XYs{{X: 0, Y: 0}, {X: 1, Y: 1}}, greyColor, .7)
	diagonal.Dashes = []vg.Length{4, 3}
	curve, dots, err := plotter.NewLinePoints(points)
	if err != nil {
		return "", fmt.Errorf("draw: %w", err)
	}
	curve.Color, curve.Width, dots.Color, dots.Shape, dots.Radius = inColor, 1.6, inColor, draw.CircleGlyph{}, 2.6
	p.Add(diagonal, curve, dots)
	return svg(p, "Reliability diagram")
}

// axisRows is how many rows at most the axes of a map are taken from.
const axisRows = 300

// plotMap draws prototypes and samples on the two principal axes of the
// prototypes; where the detector has none in that space, of the samples. share
// is how much of their variance the axes hold.
func plotMap(d *trainer.Details) (picture template.HTML, share float64, err error) {
	k := d.Model.PrototypeDim()
	centres := centresOf(d, k)
	basis := centres
	if len(basis) < 3*k { // of two points there is one axis
		basis = append(slices.Clone(centres), d.Samples[:min(len(d.InsideSamples), axisRows)*k]...)
	}
	rows := min(len(basis)/k, axisRows)
	mean, centred := make([]float64, k), mat.NewDense(rows, k, nil)
	for i := range rows {
		for j := range k {
			mean[j] += float64(basis[i*k+j]) / float64(rows)
		}
	}
	for i := range rows {
		for j := range k {
			centred.Set(i, j, float64(basis[i*k+j])-mean[j])
		}
	}
	var svd mat.SVD
	if !svd.Factorize(centred, mat.SVDThin) {
		return "", 0, errors.New("map: the principal axes were not found")
	}
	var v mat.Dense
	svd.VTo(&v)
	values, spread, kept := svd.Values(nil), 0., 0.
	for i, s := range values {
		spread += s * s
		if i < 2 {
			kept += s * s
		}
	}
	_, axes := v.Dims()
	place := func(x []float32) plotter.XYs {
		points := make(plotter.XYs, 0, len(x)/k)
		for i := range len(x) / k {
			var at [2]float64
			for a := range min(2, axes) {
				for j, m := range mean {
					at[a] += (float64(x[i*k+j]) - m) * v.At(j, a)
				}
			}
			if !math.IsNaN(at[0]) {
				points = append(points, plotter.XY{X: at[0], Y: at[1]})
			}
		}
		return points
	}
	p := newPlot("first principal axis", "second principal axis")
	n := len(d.InsideSamples) * k
	for _, kind := range []struct {
		x      []float32
		c      color.NRGBA
		alpha  uint8
		radius vg.Length
		shape  draw.GlyphDrawer
	}{
		{d.Samples[:n], inColor, 0x70, 1.4, draw.CircleGlyph{}}, {d.Samples[n:], outColor, 0x90, 1.6, draw.CircleGlyph{}},
		{centres, ink, 0xff, 3.2, draw.BoxGlyph{}},
	} {
		points := place(kind.x)
		if len(points) == 0 {
			continue
		}
		s, err := plotter.NewScatter(points)
		if err != nil {
			return "", 0, fmt.Errorf("draw: %w", err)
		}
		c := kind.c
		c.A = kind.alpha
		s.Color, s.Radius, s.Shape = c, kind.radius, kind.shape
		p.Add(s)
	}
	picture, err = svg(p, "Map of prototypes and samples")
	return picture, kept / math.Max(spread, math.SmallestNonzeroFloat64), err
}

// centresOf returns the prototypes in the space of the samples, or nothing.
func centresOf(d *trainer.Details, k int) []float32 {
	m := d.Model
	if m.Prototypes == nil {
		return nil
	}
	centres := slices.Clone(m.PrototypeData())
	if d.Directions && m.PrecisionFactor == nil { // class means stay where they are
		for i := 0; i < len(centres); i += k {
			norm := 0.
			for _, v := range centres[i : i+k] {
				norm += float64(v) * float64(v)
			}
			for j := i; j < i+k; j++ {
				centres[j] = float32(float64(centres[j]) / math.Sqrt(norm))
			}
		}
	}
	return centres
}
