// The OCI image format, as much of it as an image FROM scratch needs. Buildah would do it, too, but writes
// below /etc and /var/lib whatever its options are. The same files give the same bytes.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
)

type object = map[string]any

// imageConfig is how a container of an image starts, in the words of the format.
type imageConfig struct {
	Entrypoint []string
	Cmd        []string          `json:",omitempty"`
	Env        []string          `json:",omitempty"`
	User       string            `json:",omitempty"`
	Labels     map[string]string `json:",omitempty"`
}

// variant is the root file system of an image for machines of one architecture.
type variant struct {
	architecture string
	root         fs.FS
}

// ociArchive gives an image layout in a tar: for each architecture one layer with a root file system, which
// belongs to root throughout. An image may have several names.
func ociArchive(names []string, start imageConfig, variants []variant) ([]byte, error) {
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	var order []string
	// Every blob lies under its digest; a reference to it has kind, digest and size.
	blob := func(kind string, content []byte) object {
		digest := fmt.Sprintf("%x", sha256.Sum256(content))
		path := "blobs/sha256/" + digest
		files[path] = content
		order = append(order, path)
		return object{"mediaType": kind, "digest": "sha256:" + digest, "size": len(content)}
	}
	asBlob := func(kind string, content any) (object, error) {
		encoded, err := json.Marshal(content)
		return blob(kind, encoded), err
	}
	var images []object
	for _, one := range variants {
		layer, err := layerOf(one.root)
		if err != nil {
			return nil, err
		}
		layerRef := blob("application/vnd.oci.image.layer.v1.tar", layer)
		config, err := asBlob("application/vnd.oci.image.config.v1+json", object{
			"architecture": one.architecture, "os": "linux",
			"config": start,
			"rootfs": object{"type": "layers", "diff_ids": []any{layerRef["digest"]}},
		})
		if err != nil {
			return nil, err
		}
		manifest, err := asBlob("application/vnd.oci.image.manifest.v1+json", object{
			"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
			"config": config, "layers": []object{layerRef},
		})
		if err != nil {
			return nil, err
		}
		images = append(images, manifest)
	}
	image := images[0]
	if len(images) > 1 {
		for i, one := range variants {
			images[i]["platform"] = object{"architecture": one.architecture, "os": "linux"}
		}
		const kind = "application/vnd.oci.image.index.v1+json"
		var err error
		if image, err = asBlob(kind, object{"schemaVersion": 2, "mediaType": kind, "manifests": images}); err != nil {
			return nil, err
		}
	}
	var manifests []object
	for _, name := range names {
		named := maps.Clone(image)
		// The name under which containerd files it.
		named["annotations"] = object{"io.containerd.image.name": name}
		manifests = append(manifests, named)
	}
	var err error
	if files["index.json"], err = json.Marshal(object{"schemaVersion": 2, "manifests": manifests}); err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	writer := tar.NewWriter(&archive)
	for _, path := range append([]string{"oci-layout", "index.json"}, order...) {
		if err := writer.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(files[path]))}); err != nil {
			return nil, err
		}
		if _, err := writer.Write(files[path]); err != nil {
			return nil, err
		}
	}
	return archive.Bytes(), writer.Close()
}

// layerOf packs a root file system, in the order of its paths and without times and owners.
func layerOf(root fs.FS) ([]byte, error) {
	var layer bytes.Buffer
	writer := tar.NewWriter(&layer)
	err := fs.WalkDir(root, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		target := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if target, err = fs.ReadLink(root, path); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		clean := &tar.Header{Typeflag: header.Typeflag, Name: path, Linkname: target, Mode: header.Mode, Size: header.Size}
		if info.IsDir() {
			clean.Name += "/"
		}
		if err := writer.WriteHeader(clean); err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		content, err := fs.ReadFile(root, path)
		if err != nil {
			return err
		}
		_, err = writer.Write(content)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = writer.Close()
	return layer.Bytes(), err
}
