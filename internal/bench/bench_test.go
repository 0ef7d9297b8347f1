package bench

import (
	"testing"

	"github.com/oodmon/oodmon/featurizer"
)

// Percentiles are by nearest rank: of 1000 values, 99.9 % are at most the 999th.
func TestLatency(t *testing.T) {
	ms := make([]float64, 1000)
	for i := range ms {
		ms[i] = float64(1000 - i)
	}
	if got, want := latencyOf(ms), (Latency{P50: 500, P99: 990, P999: 999, Max: 1000}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got, want := latencyOf([]float64{3}), (Latency{P50: 3, P99: 3, P999: 3, Max: 3}); got != want {
		t.Errorf("of one value: got %+v, want %+v", got, want)
	}
}

// What is offered is what the line reads: every message is decoded, to as many
// rows as the options say.
func TestMessages(t *testing.T) {
	for _, vectors := range []int{1, 5} {
		b := &lineBench{LineOptions: LineOptions{Dim: 3, Vectors: vectors, Segments: 2}}
		message, err := b.messages()
		if err != nil {
			t.Fatal(err)
		}
		codec := featurizer.CodecRaw
		if vectors > 1 {
			codec = featurizer.CodecArrow
		}
		builder, err := featurizer.NewBuilder(featurizer.Config{Dim: 3, Codec: codec, MaxMessageBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 2 * windows {
			m := message(i)
			builder.Append(featurizer.Message{Key: m.Key, Value: m.Value})
		}
		rec, rejects := builder.Take()
		defer rec.Release()
		if int(rec.NumRows()) != 2*windows*vectors || len(rejects) > 0 {
			t.Errorf("%d vectors a message: %d rows and %d rejects, want %d and none", vectors, rec.NumRows(), len(rejects), 2*windows*vectors)
		}
	}
}

func TestOptionsThatDoNotFit(t *testing.T) {
	fine := LineOptions{Records: 100, Dim: 1, Classes: 1, Partitions: 1, Vectors: 1, Instances: 1, Runs: 1, Format: "json", When: "all"}
	for want, change := range map[string]func(*LineOptions){
		"--records: 0 must be positive":                             func(o *LineOptions) { o.Records = 0 },
		"--records: 100 is not a multiple of --vectors, 3":          func(o *LineOptions) { o.Vectors = 3 },
		"--instances: 2, but only 1 partitions to share":            func(o *LineOptions) { o.Instances = 2 },
		"--topic needs --brokers: the embedded broker begins empty": func(o *LineOptions) { o.Topic = "t" },
		"--rate: -1 must not be negative":                           func(o *LineOptions) { o.Rate = -1 },
	} {
		o := fine
		change(&o)
		if err := o.Validate(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if err := fine.Validate(); err != nil {
		t.Error(err)
	}
}
