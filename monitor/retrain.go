package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"sync"
	"time"

	"github.com/oodmon/oodmon/drift"
)

// Bounds of a call. An incident is posted without its embeddings.
const (
	maxCallBytes = 8 << 20
	callTimeout  = 20 * time.Second
)

// A RetrainCall is what a receiver reads of an incident that recommends retraining.
type RetrainCall struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Instance string `json:"instance"`
	Detector string `json:"detector"`
	Model    string `json:"model"` // its version
}

// A RetrainReceiver takes the calls of drift.retrain_webhook: POST / with an incident
// that recommends retraining. web.config_file holds for it too.
type RetrainReceiver struct {
	name    string
	calls   chan RetrainCall
	reading sync.Mutex // one call at a time
	address string
	server  *server
	log     *slog.Logger
}

// ListenForRetraining begins to take calls at address. It calls stop where it cannot
// go on.
func ListenForRetraining(cfg *Config, address string, stop func(), log *slog.Logger) (*RetrainReceiver, error) {
	web := cfg.Web
	web.ListenAddresses = []string{address}
	listeners, err := listen(web)
	if err != nil {
		return nil, err
	}
	r := &RetrainReceiver{calls: make(chan RetrainCall, 1), name: cfg.Name, address: listeners[0].Addr().String(), log: log}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{$}", r.take)
	mux.HandleFunc("GET /-/healthy", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil) })
	r.server = serve(listeners, web, mux, stop, log)
	return r, nil
}

// Calls has one that nobody has followed yet. Further calls are answered, and are one
// with it.
func (r *RetrainReceiver) Calls() <-chan RetrainCall { return r.calls }

// Address returns where calls are taken.
func (r *RetrainReceiver) Address() string { return r.address }

// Close stops taking calls.
func (r *RetrainReceiver) Close(ctx context.Context) error { return r.server.close(ctx) }

func (r *RetrainReceiver) take(w http.ResponseWriter, request *http.Request) {
	if !r.reading.TryLock() {
		http.Error(w, "another call is being read: call again", http.StatusServiceUnavailable)
		return
	}
	defer r.reading.Unlock()
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(callTimeout)) // every server of ours can
	var call RetrainCall
	var err error
	if kind, _, _ := mime.ParseMediaType(request.Header.Get("Content-Type")); kind != "application/json" { // which no page of another site may send
		err = errors.New("want the content type application/json")
	} else {
		err = json.NewDecoder(http.MaxBytesReader(w, request.Body, maxCallBytes)).Decode(&call)
	}
	switch {
	case err != nil:
		err = fmt.Errorf("want an incident, as drift.retrain_webhook posts it: %w", err)
	case call.Detector != drift.Retrain:
		err = fmt.Errorf("the incident is of the detector %q, want %q", call.Detector, drift.Retrain)
	case call.Name != r.name:
		err = fmt.Errorf("the incident is of the model %q, and the configuration here of %q", call.Name, r.name)
	}
	if err != nil {
		r.log.Warn("call for retraining refused", "from", request.RemoteAddr, "error", err)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	select {
	case r.calls <- call:
		r.log.Info("retraining is called for", "incident", call.ID, "instance", call.Instance)
	default:
		r.log.Info("retraining is called for, and waits already", "incident", call.ID, "instance", call.Instance)
	}
	w.WriteHeader(http.StatusAccepted)
}
