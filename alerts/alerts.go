// Package alerts holds the Prometheus alerting rules over what a running
// monitor exports. Each alert has a page in docs/runbooks, and its firing and
// its silence are tested with promtool.
package alerts

import _ "embed"

// Rules is rules.yml, a Prometheus rule file.
//
//go:embed rules.yml
var Rules []byte
