//go:build conformance

// Conformance is Kubernetes' own suite of specs for a cluster's network, as a test binary of the version that
// the cluster runs. The tag keeps it out of whatever vets or tests all packages: it takes minutes to compile.
package conformance

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/onsi/ginkgo/v2"
	"k8s.io/kubernetes/test/conformance/testdata"
	"k8s.io/kubernetes/test/e2e"
	_ "k8s.io/kubernetes/test/e2e/common"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"
	_ "k8s.io/kubernetes/test/e2e/framework/metrics/init"
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"
	"k8s.io/kubernetes/test/e2e/framework/testfiles"
	_ "k8s.io/kubernetes/test/e2e/network"
	"k8s.io/kubernetes/test/e2e/testing-manifests"
	"k8s.io/kubernetes/test/fixtures"
)

func TestMain(m *testing.M) {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	testfiles.AddFileSource(testing_manifests.GetE2ETestingManifestsFS())
	testfiles.AddFileSource(fixtures.GetTestFixturesFS())
	testfiles.AddFileSource(testdata.GetConformanceTestdataFS())
	framework.AfterReadingAllFlags(&framework.TestContext)
	// Now: a callback after each spec doesn't outlive the framework's own check of all of them.
	tellProgress()
	os.Exit(m.Run())
}

func TestConformance(t *testing.T) { e2e.RunE2ETests(t) }

// tellProgress has a line printed for each spec that has ended, in a form that differs from all other output
// of the suite.
func tellProgress() {
	chosen, ended := 0, 0
	ginkgo.ReportBeforeSuite(func(report ginkgo.Report) { chosen = report.PreRunStats.SpecsThatWillRun })
	ginkgo.ReportAfterEach(func(spec ginkgo.SpecReport) {
		// Specs that the focus leaves out are reported, too, without an attempt.
		if spec.NumAttempts > 0 {
			ended++
			fmt.Printf("\nspec %d/%d %s after %.0f s: %s\n", ended, chosen, spec.State, spec.RunTime.Seconds(), spec.FullText())
		}
	})
}
