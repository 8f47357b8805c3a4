package main

import (
	"io/fs"
	"os"
	"path"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
)

func TestARecipeFollowsItsStage(t *testing.T) {
	const dockerfile = `FROM rust AS build
ENV NOT=mine
# A comment.
FROM scratch AS it
COPY --from=build /source/target/images/it /
ENV PATH=/usr/sbin:/
LABEL made.by=us
USER 1:2
ENTRYPOINT ["/it", "now"]

FROM scratch AS other
ENTRYPOINT ["/other"]
`
	found, err := recipeOf(dockerfile, "it")
	wanted := recipe{"target/images/it", imageConfig{Entrypoint: []string{"/it", "now"}, Env: []string{"PATH=/usr/sbin:/"}, User: "1:2", Labels: map[string]string{"made.by": "us"}}}
	if err != nil || !reflect.DeepEqual(found, wanted) {
		t.Errorf("%+v, %v", found, err)
	}
	if _, err := recipeOf(dockerfile, "other"); err == nil {
		t.Error("a stage without a root file system has passed")
	}
	for _, unknown := range []string{"WORKDIR /", `ENV A="b c"`, "LABEL A", "COPY it /bin/", "ENTRYPOINT /it"} {
		changed := strings.Replace(dockerfile, "USER 1:2", unknown, 1)
		if _, err := recipeOf(changed, "it"); err == nil || !strings.Contains(err.Error(), "Dockerfile:8") {
			t.Errorf("%s: %v", unknown, err)
		}
	}
}

// README has people run the programs by their names, in containers of these images.
func TestEachProgramIsOnThePathOfItsImage(t *testing.T) {
	root, err := findRepo()
	if err != nil {
		t.Fatal(err)
	}
	dockerfile, err := os.ReadFile(root.path("Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, stage := range []string{"operator", "node-agent"} {
		found, err := recipeOf(string(dockerfile), stage)
		if err != nil {
			t.Fatal(err)
		}
		program := found.config.Entrypoint[0]
		files := fstest.MapFS{strings.TrimPrefix(program, "/"): {Mode: 0o755}}
		if !isOnPath(files, found.config.Env, path.Base(program)) {
			t.Errorf("%s: a container runtime doesn't find %s with %v", stage, path.Base(program), found.config.Env)
		}
	}
}

// isOnPath reports whether a runtime finds a program by its name; without a PATH it takes the one that
// runtimes agree on.
func isOnPath(files fs.FS, env []string, name string) bool {
	search := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, variable := range env {
		if value, isPath := strings.CutPrefix(variable, "PATH="); isPath {
			search = value
		}
	}
	for _, folder := range strings.Split(search, ":") {
		if _, err := fs.Stat(files, path.Join(strings.TrimPrefix(folder, "/"), name)); err == nil {
			return true
		}
	}
	return false
}
