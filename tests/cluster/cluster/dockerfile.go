// The Dockerfile's description of the images for use. The test images are made from it, so that a test which
// runs in an image, or starts its program by name, finds there what users find.
package main

import (
	"encoding/json"
	"fmt"
	"strings"
)

// recipe is a root file system, as a folder below the repository, and how its program is started.
type recipe struct {
	root   string
	config imageConfig
}

// recipeOf reads a final stage of a Dockerfile. An instruction that it can't follow is an error: skipped, it
// would make the test image differ from the one for use.
func recipeOf(dockerfile, stage string) (recipe, error) {
	var found recipe
	inside := false
	for number, line := range strings.Split(dockerfile, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		rest := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), words[0]))
		if words[0] == "FROM" {
			inside = rest == "scratch AS "+stage
			continue
		}
		if !inside {
			continue
		}
		refuse := func(why string) (recipe, error) {
			return recipe{}, fmt.Errorf("Dockerfile:%d: %q: %s", number+1, line, why)
		}
		switch words[0] {
		case "COPY":
			folder, isOurs := strings.CutPrefix(words[len(words)-2], "/source/")
			if len(words) != 4 || words[1] != "--from=build" || !isOurs || words[3] != "/" {
				return refuse("only a whole root file system can be copied: --from=build /source/FOLDER /")
			}
			found.root = folder
		case "ENV", "LABEL":
			name, value, isPair := strings.Cut(rest, "=")
			if len(words) != 2 || !isPair || strings.ContainsAny(rest, "\"'$\\") {
				return refuse("only " + words[0] + " NAME=VALUE is understood, without quotes and variables")
			}
			if words[0] == "ENV" {
				found.config.Env = append(found.config.Env, rest)
				continue
			}
			if found.config.Labels == nil {
				found.config.Labels = map[string]string{}
			}
			found.config.Labels[name] = value
		case "USER":
			found.config.User = rest
		case "ENTRYPOINT":
			if err := json.Unmarshal([]byte(rest), &found.config.Entrypoint); err != nil {
				return refuse(err.Error())
			}
		default:
			return refuse("the test images can't follow this instruction")
		}
	}
	if found.root == "" || len(found.config.Entrypoint) == 0 {
		return recipe{}, fmt.Errorf("the Dockerfile has no stage %q FROM scratch with COPY and ENTRYPOINT", stage)
	}
	return found, nil
}
