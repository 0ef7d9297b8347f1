package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"time"

	"github.com/oodmon/oodmon/dashboards"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/exporter-toolkit/web"
	"go.yaml.in/yaml/v3"
)

// handler serves the endpoints of a running monitor.
func (m *Monitor) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.InstrumentMetricHandler(m.registry,
		promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry})))
	mux.HandleFunc("GET /-/healthy", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, m.consumer.Healthy(m.cfg.Input.StallTimeout))
	})
	mux.HandleFunc("GET /-/ready", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, m.consumer.Ready())
	})
	mux.HandleFunc("POST /-/reload", func(w http.ResponseWriter, r *http.Request) {
		if !m.cfg.Web.EnableLifecycle {
			http.Error(w, "reloading over HTTP is off: set web.enable_lifecycle to true, or send SIGHUP", http.StatusForbidden)
			return
		}
		if err := m.Reload(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "in service:", m.live.Load().model.Version)
	})
	mux.HandleFunc("POST /-/drift/acknowledge", func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case !m.cfg.Web.EnableLifecycle:
			http.Error(w, "acknowledging over HTTP is off: set web.enable_lifecycle to true", http.StatusForbidden)
		case m.drift == nil:
			http.Error(w, "drift is off: set drift.enabled to true", http.StatusConflict)
		default:
			m.drift.Acknowledge()
			m.log.Info("drift acknowledged: evidence starts at 0")
			fmt.Fprintln(w, "OK")
		}
	})
	mux.HandleFunc("GET /api/v1/incidents", func(w http.ResponseWriter, _ *http.Request) {
		dir := m.cfg.Drift.Incidents.Dir
		if dir == "" {
			http.Error(w, "no incidents are kept: set drift.incidents.dir", http.StatusNotFound)
			return
		}
		all, err := Incidents(dir)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(all); err != nil {
			m.log.Debug("incidents not delivered", "error", err)
		}
	})
	if m.cfg.Web.EnablePprof {
		mux.HandleFunc("/debug/pprof/", pprof.Index) // and the profiles by name
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	mux.HandleFunc("GET /api/v1/status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(m.Status()); err != nil {
			m.log.Debug("status not delivered", "error", err)
		}
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'")
		_, _ = w.Write(dashboards.StatusPage) // an error means that the reader has gone
	})
	return mux
}

// answer writes 200 OK, or 503 with the reason.
func answer(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "OK")
}

// A server answers HTTP on the configured addresses until it is closed. Each has an
// http.Server of its own, since web.Serve sets it up.
type server struct {
	http []*http.Server
	done chan error
}

// listen opens every address, so that a port in use stops the start and not
// the run.
func listen(cfg WebConfig) ([]net.Listener, error) {
	if err := web.Validate(cfg.ConfigFile); err != nil {
		return nil, fmt.Errorf("web.config_file %s: %w", cfg.ConfigFile, err)
	}
	var listeners []net.Listener
	for _, address := range cfg.ListenAddresses {
		l, err := net.Listen("tcp", address)
		if err != nil {
			for _, open := range listeners {
				_ = open.Close()
			}
			return nil, fmt.Errorf("web.listen_addresses: %w", err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// url returns the address of the server at a host and port.
func (c *WebConfig) url(instance string) (string, error) {
	var file struct {
		TLS web.TLSConfig `yaml:"tls_server_config"`
	}
	if c.ConfigFile != "" {
		text, err := os.ReadFile(c.ConfigFile)
		if err == nil {
			err = yaml.Unmarshal(text, &file)
		}
		if err != nil {
			return "", fmt.Errorf("web.config_file: %w", err)
		}
	}
	scheme := "http"
	if file.TLS.IsEnabled() {
		scheme = "https"
	}
	return scheme + "://" + instance + "/", nil
}

// serve begins to answer, and calls stop where it cannot go on.
func serve(listeners []net.Listener, cfg WebConfig, handler http.Handler, stop func(), log *slog.Logger) *server {
	s := &server{done: make(chan error, len(listeners))}
	flags := &web.FlagConfig{WebConfigFile: &cfg.ConfigFile}
	for _, l := range listeners {
		one := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
		s.http = append(s.http, one)
		go func() {
			err := web.Serve(l, one, flags, log)
			if !errors.Is(err, http.ErrServerClosed) {
				log.Error("HTTP is no longer served: stopping", "address", l.Addr(), "error", err)
				stop()
			}
			s.done <- err
		}()
	}
	return s
}

// close stops the server and waits for it. Answers that take longer than ctx, a
// profile's for example, are cut off: that is no failure.
func (s *server) close(ctx context.Context) error {
	var all error
	for _, one := range s.http {
		err := one.Shutdown(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			err = one.Close()
		}
		all = errors.Join(all, err)
	}
	for range s.http {
		if served := <-s.done; !errors.Is(served, http.ErrServerClosed) {
			all = errors.Join(all, served)
		}
	}
	return all
}

// newRegistry returns a registry with the process' own series, and the
// registerer through which all of oodmon's series get the label `model`.
func newRegistry(name string) (*prometheus.Registry, prometheus.Registerer) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg, prometheus.WrapRegistererWith(prometheus.Labels{"model": name}, reg)
}
