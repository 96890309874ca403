// Reads {"things": [objects of Flux], "jobs": {name: PyTorchJob}} and says a line for each, by Flux's own code:
// whether its types take the object, unknown fields refused, and what the Kustomization's expressions make of the job.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"

	helm "github.com/fluxcd/helm-controller/api/v2"
	kustomize "github.com/fluxcd/kustomize-controller/api/v1"
	"github.com/fluxcd/pkg/runtime/cel"
	source "github.com/fluxcd/source-controller/api/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

type input struct {
	Things []json.RawMessage         `json:"things"`
	Jobs   map[string]map[string]any `json:"jobs"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var given input
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		return err
	}
	var rounds kustomize.Kustomization
	for _, thing := range given.Things {
		var about struct {
			Kind string `json:"kind"`
		}
		if err := json.Unmarshal(thing, &about); err != nil {
			return err
		}
		into, known := map[string]any{
			"GitRepository": &source.GitRepository{},
			"HelmRelease":   &helm.HelmRelease{},
			"Kustomization": &rounds,
			"OCIRepository": &source.OCIRepository{},
		}[about.Kind]
		if !known {
			return fmt.Errorf("%s: no such kind here", about.Kind)
		}
		decoder := json.NewDecoder(bytes.NewReader(thing))
		decoder.DisallowUnknownFields()
		say(about.Kind, "taken", decoder.Decode(into))
	}
	for _, check := range rounds.Spec.HealthCheckExprs {
		evaluator, err := cel.NewStatusEvaluator(&check.HealthCheckExpressions)
		if err != nil {
			return err
		}
		for name, job := range given.Jobs {
			result, err := evaluator.Evaluate(context.Background(), &unstructured.Unstructured{Object: job})
			if err != nil {
				say(name, "", err)
				continue
			}
			say(name, result.Status.String(), nil)
		}
	}
	return nil
}

func say(name, what string, err error) {
	if err != nil {
		what = "error: " + err.Error()
	}
	fmt.Printf("%s\t%s\n", name, what)
}
