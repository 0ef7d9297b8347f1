// Package dashboards holds what people look at: the Grafana dashboard over the
// exported metrics, and the status page that a running monitor serves itself.
package dashboards

import _ "embed"

// StatusPage is one self-contained HTML page. It reads /api/v1/status of the
// server that it came from.
//
//go:embed status.html
var StatusPage []byte
