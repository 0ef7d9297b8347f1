package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"github.com/oodmon/oodmon/drift"
)

// maxIncidentBytes is more than an incident with all its embeddings has.
const maxIncidentBytes = 64 << 20

// A RetrainReceiver takes the calls of drift.retrain_webhook: POST / with an incident
// that recommends retraining. web.config_file holds for it too.
type RetrainReceiver struct {
	// Calls has the id of an incident whose call nobody has followed yet. Further
	// calls are answered, and are one with it.
	Calls <-chan string

	name      string
	calls     chan<- string
	listeners []net.Listener
	server    *server
	log       *slog.Logger
}

// ListenForRetraining begins to take calls at address. It calls stop where it cannot
// go on.
func ListenForRetraining(cfg *Config, address string, stop func(), log *slog.Logger) (*RetrainReceiver, error) {
	web := WebConfig{ListenAddresses: []string{address}, ConfigFile: cfg.Web.ConfigFile}
	listeners, err := listen(web)
	if err != nil {
		return nil, err
	}
	calls := make(chan string, 1)
	r := &RetrainReceiver{Calls: calls, calls: calls, name: cfg.Name, listeners: listeners, log: log}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{$}", r.take)
	mux.HandleFunc("GET /-/healthy", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil) })
	r.server = serve(listeners, web, mux, stop, log)
	return r, nil
}

// Address returns where calls are taken.
func (r *RetrainReceiver) Address() string { return r.listeners[0].Addr().String() }

// Close stops taking calls.
func (r *RetrainReceiver) Close(ctx context.Context) error { return r.server.close(ctx) }

func (r *RetrainReceiver) take(w http.ResponseWriter, request *http.Request) {
	var incident Incident
	err := json.NewDecoder(http.MaxBytesReader(w, request.Body, maxIncidentBytes)).Decode(&incident)
	switch {
	case err != nil:
		err = fmt.Errorf("want an incident, as drift.retrain_webhook posts it: %w", err)
	case incident.Detector != drift.Retrain:
		err = fmt.Errorf("the incident is of the detector %q, want %q", incident.Detector, drift.Retrain)
	case incident.Name != r.name:
		err = fmt.Errorf("the incident is of the model %q, and the configuration here of %q", incident.Name, r.name)
	}
	if err != nil {
		r.log.Warn("call for retraining refused", "from", request.RemoteAddr, "error", err)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	select {
	case r.calls <- incident.ID:
		r.log.Info("retraining is called for", "incident", incident.ID, "instance", incident.Instance)
	default:
		r.log.Info("retraining is called for, and waits already", "incident", incident.ID, "instance", incident.Instance)
	}
	w.WriteHeader(http.StatusAccepted)
}
