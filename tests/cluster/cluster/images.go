// Images: root file systems turned into archives that containerd imports. There is no registry.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// image is a root file system and how its program is started.
type image struct {
	archive   string
	names     []string
	recipe    recipe
	programs  []string                             // all there is in it, `build`'s or by their paths Debian's; none: somebody has staged it
	more      func(root repo, folder string) error // stages what else it needs
	onRequest bool                                 // not on every node, but where `load` brings it
}

// forUse are the Dockerfile's images, under names with this registry and tag.
func forUse(root repo, registry, tag string) ([]image, error) {
	dockerfile, err := os.ReadFile(root.path("Dockerfile"))
	if err != nil {
		return nil, err
	}
	var all []image
	for _, stage := range []string{"operator", "node-agent"} {
		recipe, err := recipeOf(string(dockerfile), stage)
		if err != nil {
			return nil, err
		}
		all = append(all, image{archive: stage, names: []string{registry + "vnetpool/" + stage + ":" + tag}, recipe: recipe})
	}
	return all, nil
}

// allImages are those for use and the tests' own.
func allImages(root repo) ([]image, error) {
	all, err := forUse(root, "localhost/", "dev")
	if err != nil {
		return nil, err
	}
	own := func(name, program string, onRequest bool, entrypoint ...string) image {
		config := imageConfig{Entrypoint: entrypoint}
		return image{
			archive: name, names: []string{"localhost/" + name + ":dev"}, programs: []string{program}, onRequest: onRequest,
			recipe: recipe{root: "target/cluster/rootfs/" + filepath.Base(program), config: config},
		}
	}
	haproxy := "/usr/sbin/haproxy"
	return append(all,
		own("probe", "probe", false, "/probe"),
		own("pause", "probe", false, "/probe", "pause"),
		own("coredns", "coredns", true, "/coredns"),
		own("haproxy", haproxy, true, haproxy),
		agnhostImage(),
	), nil
}

// images makes every archive current; an image whose root file system wasn't staged is skipped with a
// message.
func images(ctx context.Context) error {
	root, err := findRepo()
	if err != nil {
		return err
	}
	all, err := allImages(root)
	if err != nil {
		return err
	}
	for _, i := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := i.build(root); err != nil {
			return fmt.Errorf("image %s: %w", i.archive, err)
		}
	}
	return nil
}

// releaseCommand writes the images for use into a folder, named by a release. Of one that is published the
// publisher names the registry.
func releaseCommand(args []string) error {
	flags := flag.NewFlagSet("release", flag.ContinueOnError)
	tag := flags.String("tag", "", "the release's version")
	registry := flags.String("registry", "", "in the images' names, with a slash at its end; for a test")
	architectures := flags.String("architectures", runtime.GOARCH, "for which their root file systems are staged")
	out := flags.String("out", "", "the folder for the archives")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *tag == "" || *out == "" || flags.NArg() != 0 {
		return errUsage
	}
	root, err := findRepo()
	if err != nil {
		return err
	}
	all, err := forUse(root, *registry, *tag)
	if err != nil {
		return err
	}
	for _, i := range all {
		i.recipe.config.Labels["org.opencontainers.image.version"] = *tag
		var variants []variant
		for _, architecture := range strings.Split(*architectures, ",") {
			variants = append(variants, variant{architecture, os.DirFS(root.path(rootFor(i.recipe.root, architecture)))})
		}
		content, err := ociArchive(i.names, i.recipe.config, variants)
		if err != nil {
			return fmt.Errorf("image %s: %w", i.archive, err)
		}
		archive := filepath.Join(*out, fmt.Sprintf("vnetpool-%s-%s.oci.tar", i.archive, *tag))
		if err := writeFile(archive, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// rootFor is where the Makefile stages a root file system for an architecture, by where it does for this one.
func rootFor(folder, architecture string) string {
	if architecture == runtime.GOARCH {
		return folder
	}
	return filepath.Join(filepath.Dir(folder)+"-"+architecture, filepath.Base(folder))
}

// hasPrograms reports whether the programs of the image are there.
func (i image) hasPrograms(root repo) bool {
	return !slices.ContainsFunc(i.programs, func(path string) bool {
		if !filepath.IsAbs(path) {
			path = root.bin(path)
		}
		_, err := os.Stat(path)
		return err != nil
	})
}

// stage puts an image's programs into its root file system, and with Debian's the libraries that the linker
// finds for them.
func (i image) stage(root repo) error {
	files := map[string]string{}
	for _, program := range i.programs {
		if !filepath.IsAbs(program) {
			files["/"+program] = root.bin(program)
			continue
		}
		output, err := exec.Command("ldd", program).Output()
		if err != nil {
			return fmt.Errorf("ldd %s: %w", program, err)
		}
		files[program] = program
		for _, word := range strings.Fields(string(output)) {
			if filepath.IsAbs(word) {
				files[word] = word
			}
		}
	}
	for place, source := range files {
		content, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(root.path(i.recipe.root), place), content, 0o755); err != nil {
			return err
		}
	}
	if i.more == nil {
		return nil
	}
	return i.more(root, root.path(i.recipe.root))
}

// build writes one image's archive unless it holds just that already.
func (i image) build(root repo) error {
	folder := root.path(i.recipe.root)
	if i.onRequest && !i.hasPrograms(root) {
		progress("image %s skipped: its program is not built", i.archive)
		return nil
	}
	if err := i.stage(root); err != nil {
		return fmt.Errorf("%w: run cluster build first", err)
	}
	if _, err := os.Stat(folder); errors.Is(err, fs.ErrNotExist) {
		progress("image %s skipped: %s is missing; stage its root file system there first", i.archive, i.recipe.root)
		return nil
	}
	if _, err := os.Stat(filepath.Join(folder, i.recipe.config.Entrypoint[0])); err != nil {
		return fmt.Errorf("%w: stage the program there first", err)
	}
	content, err := ociArchive(i.names, i.recipe.config, []variant{{runtime.GOARCH, os.DirFS(folder)}})
	if err != nil {
		return err
	}
	archive := root.output("images", i.archive+".tar")
	if i.onRequest {
		archive = root.output("images", "on-request", i.archive+".tar")
	}
	if current, err := os.ReadFile(archive); err == nil && bytes.Equal(current, content) {
		return nil
	}
	progress("image %s", i.archive)
	// Into a new file, then renamed: half an archive is never imported.
	if err := writeFile(archive+".new", content, 0o644); err != nil {
		return err
	}
	return os.Rename(archive+".new", archive)
}
