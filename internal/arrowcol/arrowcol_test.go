package arrowcol

import (
	"fmt"
	"testing"

	"github.com/apache/arrow/go/v15/arrow"
	"github.com/apache/arrow/go/v15/arrow/array"
)

// Text and Bool give back what went in, also after rows were dropped in the
// middle of a byte of their bitmaps.
func TestColumnsAreUsedAgain(t *testing.T) {
	var text Text
	var flags Bool
	for _, keep := range []int{0, 1, 7, 8, 9, 15, 16} {
		text.Truncate(0)
		var want []string
		add := func(i int) {
			if i%3 == 0 {
				text.AppendNull()
				want = append(want, "null")
				return
			}
			text.Append(fmt.Append(nil, "v", i))
			want = append(want, fmt.Sprint("v", i))
		}
		for i := range 17 {
			add(i)
		}
		text.Truncate(keep)
		want = want[:keep]
		for i := range 5 {
			add(100 + i)
		}
		flags.Reset()
		for i := range want {
			flags.Append(i%2 == 1)
		}
		rec := Record(arrow.NewSchema([]arrow.Field{
			{Name: "text", Type: arrow.BinaryTypes.String, Nullable: true}, {Name: "flag", Type: arrow.FixedWidthTypes.Boolean},
			{Name: "number", Type: arrow.PrimitiveTypes.Int32},
		}, nil), len(want), text.Data(), flags.Data(), Fixed(arrow.PrimitiveTypes.Int32, make([]int32, len(want))))
		col := rec.Column(0).(*array.String)
		for i, w := range want {
			got := "null"
			if !col.IsNull(i) {
				got = col.Value(i)
			}
			if got != w || rec.Column(1).(*array.Boolean).Value(i) != (i%2 == 1) {
				t.Errorf("kept %d: row %d is %s %v, want %s", keep, i, got, rec.Column(1), w)
			}
		}
		if int(rec.NumRows()) != len(want) || col.Len() != len(want) {
			t.Errorf("kept %d: %d rows, want %d", keep, col.Len(), len(want))
		}
		rec.Release()
	}
}

func TestLists(t *testing.T) {
	list := arrow.FixedSizeListOf(2, arrow.PrimitiveTypes.Float32)
	rec := Record(arrow.NewSchema([]arrow.Field{{Name: "x", Type: list}}, nil), 2, Lists(list, 2, []float32{1, 2, 3, 4}))
	defer rec.Release()
	if got := fmt.Sprint(rec.Column(0)); got != "[[1 2] [3 4]]" {
		t.Errorf("got %s", got)
	}
}
