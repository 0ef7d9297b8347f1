package demo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/apache/arrow/go/v15/arrow/array"
	"github.com/oodmon/oodmon/featurizer"
	"github.com/oodmon/oodmon/model"
	"github.com/oodmon/oodmon/monitor"
	"github.com/oodmon/oodmon/trainer"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	producedPerSecond = 500
	tick              = 20 * time.Millisecond
	unknownEvery      = 3   // once they arrive, one record in so many is an unknown digit
	brokenEvery       = 250 // one record in so many is no embedding
)

// fit trains a head on the labelled digits and publishes it to a registry.
func fit(ctx context.Context, dir, registry string, out io.Writer) (*model.Model, error) {
	start := time.Now()
	mod, report, err := trainer.Train(ctx, trainer.Options{
		Data: trainer.Files(filepath.Join(dir, "train.arrow")), Calibration: trainer.Files(filepath.Join(dir, "calibration.arrow")),
		Recipe: trainer.DefaultRecipe(), Alpha: .01, Delta: .05, Created: time.Now(), TempDir: dir,
	})
	if err != nil {
		return nil, fmt.Errorf("fit the head: %w", err)
	}
	models, err := model.OpenRegistry(registry)
	if err != nil {
		return nil, err
	}
	if _, err := models.Publish(ctx, mod, model.Event{}); err != nil {
		return nil, fmt.Errorf("publish the head: %w", err)
	}
	fmt.Fprintf(out, "An IsoMax+ head for the digits 0-7 was fitted on %d labelled embeddings in %v: model %s.\n",
		report.Records, time.Since(start).Round(10*time.Millisecond), mod.Version)
	return mod, nil
}

// A digit is an embedding of the demo's data as it travels: little-endian
// float32.
type digit struct {
	label string
	bytes []byte
}

func readDigits(path string) ([]digit, error) {
	r, err := featurizer.OpenFile(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var all []digit
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		x, dim, err := featurizer.Embeddings(rec)
		if err != nil {
			return nil, err
		}
		labels, err := featurizer.Column[*array.String](rec, featurizer.ColLabel)
		if err != nil {
			return nil, err
		}
		for i := range int(rec.NumRows()) {
			d := digit{bytes: make([]byte, 0, 4*dim)}
			if labels.IsValid(i) {
				d.label = strings.Clone(labels.Value(i)) // the record's memory is used again
			}
			for _, v := range x[i*dim : (i+1)*dim] {
				d.bytes = binary.LittleEndian.AppendUint32(d.bytes, math.Float32bits(v))
			}
			all = append(all, d)
		}
	}
}

// tell produces the stream, watches what comes back, and narrates.
func tell(ctx context.Context, dir string, brokers []string, mod *model.Model, mon *monitor.Monitor, opts Options) (*Summary, error) {
	inside, err := readDigits(filepath.Join(dir, "test.arrow"))
	if err != nil {
		return nil, err
	}
	outside, err := readDigits(filepath.Join(dir, "ood.arrow"))
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(scoresTopic, deadLetterTopic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(50*time.Millisecond))
	if err != nil {
		return nil, fmt.Errorf("connect to the embedded broker: %w", err)
	}
	defer client.Close()

	l := &ledger{noticer: newNoticer(mod.Alpha), firstOOD: -1}
	start := time.Now()
	calm := calmTime
	producing, stopProducing := context.WithCancel(ctx)
	defer stopProducing()
	if opts.For > 0 {
		calm = time.Duration(calmShare * float64(opts.For))
		producing, stopProducing = context.WithTimeout(ctx, opts.For)
		defer stopProducing()
	}
	reading, stopReading := context.WithCancel(context.WithoutCancel(ctx))
	defer stopReading()

	var group sync.WaitGroup
	produced, read := make(chan error, 1), make(chan error, 1)
	group.Go(func() { produced <- produce(producing, client, l, inside, outside, calm) })
	group.Go(func() { read <- receive(reading, client, l) })
	defer group.Wait()
	defer stopReading()
	defer stopProducing()

	t := &table{out: opts.Out, redraw: opts.Redraw, start: start, calm: calm}
	fmt.Fprintf(opts.Out, "Known digits arrive at %d a second; unknown ones, 8 and 9, join them in %v.\n\n", producedPerSecond, calm.Round(time.Second))
	refresh := time.NewTicker(t.interval())
	defer refresh.Stop()
	for done := false; !done; {
		select {
		case err := <-produced:
			if err != nil {
				return nil, fmt.Errorf("produce: %w", err)
			}
			done = true
		case err := <-read:
			return nil, fmt.Errorf("read what the monitor wrote: %w", err)
		case <-refresh.C:
			t.show(mon.Status(), l)
		}
	}
	// Everything was sent: wait for the answers, but not for ever.
	for deadline := time.Now().Add(drainTimeout); time.Now().Before(deadline); time.Sleep(tick) {
		if sent, settled := l.progress(); settled == sent {
			break
		}
	}
	t.show(mon.Status(), l)
	stopReading()
	if err := <-read; err != nil {
		return nil, fmt.Errorf("read what the monitor wrote: %w", err)
	}
	s := l.summarise(mod, time.Since(start))
	first, _, _, _ := l.moment()
	s.hear(t.fired, first)
	return s, nil
}

// produce sends known digits, after calm also unknown ones, and now and then
// bytes that are no embedding, until ctx is done.
func produce(ctx context.Context, client *kgo.Client, l *ledger, inside, outside []digit, calm time.Duration) error {
	garbage := [][]byte{{}, inside[0].bytes[:7], make([]byte, len(inside[0].bytes)), []byte("not an embedding, but text of another length")}
	var failed error
	var once sync.Once
	start, sent, ticker := time.Now(), 0, time.NewTicker(tick)
	defer ticker.Stop()
	for ctx.Err() == nil && failed == nil {
		select {
		case <-ctx.Done():
			continue
		case <-ticker.C:
		}
		due := int(time.Since(start).Seconds() * producedPerSecond)
		for ; sent < due; sent++ {
			kind, d := known, inside[sent%len(inside)]
			switch {
			case sent%brokenEvery == brokenEvery-1:
				kind, d = broken, digit{bytes: garbage[sent/brokenEvery%len(garbage)]}
			case time.Since(start) >= calm && sent%unknownEvery == 0:
				kind, d = unknown, outside[sent%len(outside)]
			}
			record := &kgo.Record{Topic: inputTopic, Key: l.send(kind, d.label), Value: d.bytes}
			client.Produce(context.WithoutCancel(ctx), record, func(_ *kgo.Record, err error) {
				if err != nil {
					once.Do(func() { failed = err })
				}
			})
		}
		if err := client.Flush(context.WithoutCancel(ctx)); err != nil {
			return err
		}
	}
	return failed
}

// receive enters into the ledger what the monitor writes, until ctx is done.
func receive(ctx context.Context, client *kgo.Client, l *ledger) error {
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil {
			return err
		}
		for _, record := range fetches.Records() {
			if err := l.receive(record); err != nil {
				return err
			}
		}
	}
}
