package deploy_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oodmon/oodmon/monitor"
	"go.yaml.in/yaml/v3"
)

type container struct {
	Args            []string `yaml:"args"`
	SecurityContext struct {
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		Capabilities             struct {
			Drop []string `yaml:"drop"`
		} `yaml:"capabilities"`
	} `yaml:"securityContext"`
	LivenessProbe  probe `yaml:"livenessProbe"`
	ReadinessProbe probe `yaml:"readinessProbe"`
	VolumeMounts   []struct {
		MountPath string `yaml:"mountPath"`
		ReadOnly  bool   `yaml:"readOnly"`
	} `yaml:"volumeMounts"`
}

type probe struct {
	HTTPGet struct {
		Path string `yaml:"path"`
	} `yaml:"httpGet"`
}

type pod struct {
	Spec struct {
		RestartPolicy                 string `yaml:"restartPolicy"`
		TerminationGracePeriodSeconds int    `yaml:"terminationGracePeriodSeconds"`
		SecurityContext               struct {
			RunAsNonRoot   bool `yaml:"runAsNonRoot"`
			RunAsUser      int  `yaml:"runAsUser"`
			SeccompProfile struct {
				Type string `yaml:"type"`
			} `yaml:"seccompProfile"`
		} `yaml:"securityContext"`
		Containers []container `yaml:"containers"`
	} `yaml:"spec"`
}

type object struct {
	Kind string            `yaml:"kind"`
	Data map[string]string `yaml:"data"`
	Spec struct {
		Template          pod    `yaml:"template"`
		ConcurrencyPolicy string `yaml:"concurrencyPolicy"`
		JobTemplate       struct {
			Spec struct {
				PodFailurePolicy struct {
					Rules []struct {
						Action      string `yaml:"action"`
						OnExitCodes struct {
							Values []int `yaml:"values"`
						} `yaml:"onExitCodes"`
					} `yaml:"rules"`
				} `yaml:"podFailurePolicy"`
				Template pod `yaml:"template"`
			} `yaml:"spec"`
		} `yaml:"jobTemplate"`
	} `yaml:"spec"`
}

// manifests returns the objects of deploy/kubernetes by kind.
func manifests(t *testing.T) map[string]object {
	t.Helper()
	text, err := os.ReadFile("kubernetes/oodmon.yml")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]object{}
	for dec := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var o object
		err := dec.Decode(&o)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all[o.Kind] = o
	}
}

// config loads the configuration that the manifests hold.
func config(t *testing.T) *monitor.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "oodmon.yml")
	if err := os.WriteFile(file, []byte(manifests(t)["ConfigMap"].Data["oodmon.yml"]), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := monitor.LoadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestComposeConfigurationLoads(t *testing.T) {
	cfg, err := monitor.LoadConfig("compose/oodmon.yml")
	if err != nil {
		t.Fatal(err)
	}
	// compose.yml mounts the rules of the default configuration.
	got, want := cfg.AlertParameters(), monitor.DefaultConfig().AlertParameters()
	got.Config.Evaluate = want.Config.Evaluate
	if got != want {
		t.Errorf("the rules repeat %+v, and the configuration has %+v", want, got)
	}
}

type service struct {
	Image       string   `yaml:"image"`
	User        string   `yaml:"user"`
	ReadOnly    bool     `yaml:"read_only"`
	CapDrop     []string `yaml:"cap_drop"`
	SecurityOpt []string `yaml:"security_opt"`
	Volumes     []string `yaml:"volumes"`
}

// services returns those of compose.yml by name.
func services(t *testing.T) map[string]service {
	t.Helper()
	text, err := os.ReadFile("compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	var compose struct {
		Services map[string]service `yaml:"services"`
	}
	if err := yaml.Unmarshal(text, &compose); err != nil {
		t.Fatal(err)
	}
	return compose.Services
}

func TestComposeMountsWhatExists(t *testing.T) {
	mounts := 0
	for name, service := range services(t) {
		for _, volume := range service.Volumes {
			host, _, _ := strings.Cut(volume, ":")
			if !strings.HasPrefix(host, ".") {
				continue // a named volume
			}
			mounts++
			if _, err := os.Stat(host); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if mounts == 0 {
		t.Error("no service mounts a file of the repository")
	}
}

func TestDeploymentDrainsBeforeItIsKilled(t *testing.T) {
	grace := time.Duration(manifests(t)["Deployment"].Spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second
	// Leaving the group, the last incidents and stopping HTTP come after the drain.
	if drain := config(t).Shutdown.DrainTimeout; grace < drain+15*time.Second {
		t.Errorf("killed after %v, which is not 15s more than the drain timeout of %v", grace, drain)
	}
}

func TestPodsHaveNoPrivileges(t *testing.T) {
	all := manifests(t)
	for kind, p := range map[string]pod{"Deployment": all["Deployment"].Spec.Template, "CronJob": all["CronJob"].Spec.JobTemplate.Spec.Template} {
		if s := p.Spec.SecurityContext; !s.RunAsNonRoot || s.RunAsUser != 65532 || s.SeccompProfile.Type != "RuntimeDefault" {
			t.Errorf("%s: %+v", kind, s)
		}
		if len(p.Spec.Containers) != 1 {
			t.Fatalf("%s: %d containers, want 1", kind, len(p.Spec.Containers))
		}
		s := p.Spec.Containers[0].SecurityContext
		if !s.ReadOnlyRootFilesystem || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) {
			t.Errorf("%s: want a read-only root, no escalation and no capability, got %+v", kind, s)
		}
	}
}

// Nor have the containers of the compose file, and the image by itself is nobody's.
func TestContainersHaveNoPrivileges(t *testing.T) {
	ours := 0
	for name, s := range services(t) {
		if s.Image != "oodmon" {
			continue
		}
		ours++
		if s.User != "65532:65532" || !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}) {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if ours < 3 {
		t.Errorf("%d services run oodmon, want first-model, oodmon and demo", ours)
	}
	if text, err := os.ReadFile("Dockerfile"); err != nil || !strings.Contains(string(text), "\nUSER 65532:65532\n") {
		t.Errorf("the image names no user: %v", err)
	}
}

func TestOnlyRetrainingMayWriteTheRegistry(t *testing.T) {
	all, registry := manifests(t), config(t).Model.Registry
	for kind, want := range map[string]bool{"Deployment": true, "CronJob": false} {
		p := all[kind].Spec.Template
		if kind == "CronJob" {
			p = all[kind].Spec.JobTemplate.Spec.Template
		}
		mounted := false
		for _, m := range p.Spec.Containers[0].VolumeMounts {
			if m.MountPath == registry {
				mounted = true
				if m.ReadOnly != want {
					t.Errorf("%s: registry read-only %v, want %v", kind, m.ReadOnly, want)
				}
			}
		}
		if !mounted {
			t.Errorf("%s: %s is not mounted", kind, registry)
		}
	}
}

// What drift keeps lies on a volume that may be written.
func TestDriftStateIsOnAVolume(t *testing.T) {
	cfg := config(t).Drift
	for key, path := range map[string]string{"drift.state_file": cfg.StateFile, "drift.incidents.dir": cfg.Incidents.Dir} {
		mounted := false
		for _, m := range manifests(t)["Deployment"].Spec.Template.Spec.Containers[0].VolumeMounts {
			mounted = mounted || !m.ReadOnly && strings.HasPrefix(path, m.MountPath+"/")
		}
		if !mounted {
			t.Errorf("%s: %q is on no volume that is mounted for writing", key, path)
		}
	}
}

func TestProbesAskTheRightEndpoints(t *testing.T) {
	c := manifests(t)["Deployment"].Spec.Template.Spec.Containers[0]
	if c.LivenessProbe.HTTPGet.Path != "/-/healthy" || c.ReadinessProbe.HTTPGet.Path != "/-/ready" {
		t.Errorf("liveness asks %q and readiness %q, want /-/healthy and /-/ready", c.LivenessProbe.HTTPGet.Path, c.ReadinessProbe.HTTPGet.Path)
	}
}

// A refusal by the gate (3) and a wrong configuration (2) are not tried again;
// a failure (1) is.
func TestRefusedRetrainingIsNotRepeated(t *testing.T) {
	job := manifests(t)["CronJob"].Spec
	if job.ConcurrencyPolicy != "Forbid" {
		t.Errorf("concurrencyPolicy %q, want Forbid", job.ConcurrencyPolicy)
	}
	if got := job.JobTemplate.Spec.Template.Spec.RestartPolicy; got != "Never" {
		t.Errorf("restartPolicy %q, want Never: podFailurePolicy needs it", got)
	}
	var final []int
	for _, rule := range job.JobTemplate.Spec.PodFailurePolicy.Rules {
		if rule.Action == "FailJob" {
			final = append(final, rule.OnExitCodes.Values...)
		}
	}
	if !slices.Equal(final, []int{2, 3}) {
		t.Errorf("exit codes that end the job: %v, want [2 3]", final)
	}
}
