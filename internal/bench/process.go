package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/oodmon/oodmon/monitor"
	"go.yaml.in/yaml/v3"
)

// A process is an `oodmon run`.
type process struct {
	child   *exec.Cmd
	address string
	stderr  bytes.Buffer
	exited  chan error
	gone    bool // ended early
}

// start runs a monitor, on the given core where that isn't negative.
func (b *lineBench) start(ctx context.Context, cfg monitor.Config, name string, core int) (*process, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	cfg.Web.ListenAddresses = []string{address}
	text, err := yaml.Marshal(&cfg)
	if err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	path := filepath.Join(b.dir, name+".yml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	args := []string{b.Program, "run", "--config", path}
	if core >= 0 {
		args = append([]string{"taskset", "--cpu-list", strconv.Itoa(core)}, args...)
	}
	p := &process{child: exec.CommandContext(ctx, args[0], args[1:]...), address: address, exited: make(chan error, 1)}
	p.child.Stderr = &p.stderr
	p.child.Cancel = func() error { return p.child.Process.Signal(syscall.SIGTERM) }
	p.child.WaitDelay = 30 * time.Second
	if err := p.child.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	go func() { p.exited <- p.child.Wait() }()
	return p, nil
}

// startAll starts all instances. What it returns has to be stopped, also with an
// error.
func (b *lineBench) startAll(ctx context.Context, cfg monitor.Config) (all []*process, err error) {
	for i := range b.Instances {
		core := -1
		if b.Pin {
			core = i
		}
		p, err := b.start(ctx, cfg, fmt.Sprintf("oodmon-%d", i), core)
		if err != nil {
			return all, err
		}
		all = append(all, p)
	}
	return all, nil
}

func stopAll(all []*process) (err error) {
	for _, p := range all {
		err = errors.Join(err, p.stop())
	}
	return err
}

// peakOf is the sum of the largest resident sets so far.
func peakOf(all []*process) (total int64, err error) {
	for _, p := range all {
		u, err := p.usage()
		if err != nil {
			return 0, err
		}
		total += u.peak
	}
	return total, nil
}

// stop ends the process and waits for it.
func (p *process) stop() error {
	if p.gone {
		return nil // and ended said so
	}
	if err := p.child.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop oodmon run: %w", err)
	}
	if err := <-p.exited; err != nil {
		return fmt.Errorf("oodmon run: %w\n%s", err, p.stderr.String())
	}
	return nil
}

// ended returns an error where the process has ended already.
func (p *process) ended() error {
	select {
	case err := <-p.exited:
		p.gone = true
		return fmt.Errorf("oodmon run ended early: %w\n%s", err, p.stderr.String())
	default:
		return nil
	}
}

// ready says whether the monitor is a member of its group.
func (p *process) ready(ctx context.Context) bool {
	resp, err := p.get(ctx, "/-/ready")
	if err != nil {
		return false
	}
	_ = resp.Body.Close() // nothing was read
	return resp.StatusCode == http.StatusOK
}

func (p *process) status(ctx context.Context) (s monitor.Status, err error) {
	resp, err := p.get(ctx, "/api/v1/status")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	err = json.NewDecoder(resp.Body).Decode(&s)
	return s, err
}

func (p *process) get(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.address+path, nil)
	if err != nil {
		return nil, err
	}
	return http.DefaultClient.Do(req)
}

// A usage is what a process has used so far.
type usage struct {
	cpu       time.Duration
	rss, peak int64 // bytes
}

// usage asks the operating system. The kernel's rusage will not do for the
// memory: it starts from the parent's, which holds the embedded broker.
func (p *process) usage() (u usage, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.child.Process.Pid))
	if errors.Is(err, os.ErrNotExist) {
		return u, errors.New("what a process uses is read from /proc, which is not here: bench line needs Linux")
	}
	if err != nil {
		return u, fmt.Errorf("read CPU time: %w", err)
	}
	// User and system time are the 14th and 15th field; the second, in
	// parentheses, may hold spaces.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return u, fmt.Errorf("read CPU time: %w", err)
		}
		u.cpu += time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.child.Process.Pid))
	if err != nil {
		return u, fmt.Errorf("read memory: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		for prefix, to := range map[string]*int64{"VmHWM:": &u.peak, "VmRSS:": &u.rss} {
			kib, ok := strings.CutPrefix(line, prefix)
			if !ok {
				continue
			}
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(kib), "kB")), 10, 64)
			if err != nil {
				return u, fmt.Errorf("read memory: %w", err)
			}
			*to = n << 10
		}
	}
	return u, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}
