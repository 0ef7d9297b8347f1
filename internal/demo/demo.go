package demo

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/oodmon/oodmon/monitor"
	"github.com/twmb/franz-go/pkg/kfake"
)

//go:embed data/*.arrow data/README.md data/make.py
var files embed.FS

const (
	inputTopic      = "embeddings"
	scoresTopic     = "scores"
	deadLetterTopic = "embeddings.dead-letter"
	partitions      = 4

	// calmShare of the time passes before the first unknown digit.
	calmShare = 0.4
	calmTime  = 15 * time.Second // where there is no end
	// listenAddress is where the status page is, if the port is free.
	listenAddress = "127.0.0.1:9095"
	drainTimeout  = 20 * time.Second
	// referenceRecords are the live records that drift compares with: the
	// calibration of so little data is too small. It takes four seconds.
	referenceRecords = 2000
)

// Options say how the story is told.
type Options struct {
	For     time.Duration // how long records are produced; 0: until ctx is done
	Address string        // where to serve the status page; "": 127.0.0.1:9095, or any free port
	Out     io.Writer     // the narration; the summary is the caller's to show
	Redraw  bool          // Out is a terminal: redraw the table in place
	Log     *slog.Logger
}

// Run tells the story and returns its summary. It ends at opts.For, or when
// ctx is done; the summary holds in both cases.
func Run(ctx context.Context, opts Options) (_ *Summary, err error) {
	dir, err := os.MkdirTemp("", "oodmon-demo-")
	if err != nil {
		return nil, fmt.Errorf("make the demo's folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := unpack(dir); err != nil {
		return nil, err
	}

	cluster, err := kfake.NewCluster(kfake.NumBrokers(1),
		kfake.SeedTopics(partitions, inputTopic, scoresTopic, deadLetterTopic))
	if err != nil {
		return nil, fmt.Errorf("start the embedded broker: %w", err)
	}
	defer cluster.Close()
	fmt.Fprintf(opts.Out, "An embedded Kafka broker is up at %s.\n", cluster.ListenAddrs()[0])

	registry := filepath.Join(dir, "registry")
	mod, err := fit(ctx, dir, registry, opts.Out)
	if err != nil {
		return nil, err
	}

	cfg := monitor.DefaultConfig()
	cfg.Name = "digits"
	cfg.Kafka.Brokers = cluster.ListenAddrs()
	cfg.Input.Topic, cfg.Input.Start, cfg.Input.Codec = inputTopic, "earliest", "raw"
	cfg.Input.Batch.MaxWait = 50 * time.Millisecond
	cfg.Output.Topic, cfg.DeadLetter.Topic = scoresTopic, deadLetterTopic
	cfg.Model.Registry = registry
	// No Prometheus runs here: the monitor evaluates its own rules. The first
	// calm seconds make the reference.
	cfg.Alerts.Evaluate.Enabled, cfg.Alerts.Evaluate.Interval = true, time.Second
	cfg.Drift.ReferenceRecords = referenceRecords
	cfg.Web.ListenAddresses = []string{address(opts.Address)}
	mon, err := monitor.New(ctx, cfg, opts.Log)
	if err != nil {
		return nil, fmt.Errorf("start the monitor: %w", err)
	}
	fmt.Fprintf(opts.Out, "The monitor is up. Status page: http://%[1]s/  Metrics: http://%[1]s/metrics\n", mon.Addresses()[0])

	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	stopped := make(chan error, 1)
	go func() { stopped <- mon.Run(running) }()

	s, err := tell(ctx, dir, cluster.ListenAddrs(), mod, mon, opts)
	stop()
	if runErr := <-stopped; runErr != nil {
		err = errors.Join(err, fmt.Errorf("the monitor: %w", runErr))
	}
	return s, err
}

// unpack writes the embedded data into dir: what follows reads it from files,
// as for any user.
func unpack(dir string) error {
	return fs.WalkDir(files, "data", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := files.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, d.Name()), content, 0o600); err != nil {
			return fmt.Errorf("unpack the demo's data: %w", err)
		}
		return nil
	})
}

// address returns the wanted address, or by default one that is free.
func address(wanted string) string {
	if wanted != "" {
		return wanted
	}
	l, err := net.Listen("tcp", listenAddress)
	if err != nil {
		return "127.0.0.1:0"
	}
	_ = l.Close()
	return listenAddress
}
