# The two images for use: `docker build --platform linux/amd64 --target operator .`, and
# `--target node-agent`.
#
# Another BASE needs Rust, make and Debian 12's packages; name it by its digest to build from the
# same one again.
ARG BASE=rust:1.95-bookworm
FROM ${BASE} AS build
WORKDIR /source
COPY . .
# The versions of Cargo.lock, or none: what follows finds the file as it must be.
RUN cargo fetch --locked
# A test has `dev` instead, which compiles in a part of the time.
ARG PROFILE=release
RUN make images-root PROFILE=$PROFILE

# The test cluster's images are made from what follows, too (tests/cluster/cluster/dockerfile.go). Both
# programs are on the PATH, so that `kubectl exec` finds them by their names.
FROM scratch AS operator
COPY --from=build /source/target/images/operator /
LABEL org.opencontainers.image.title=vnetpool-operator
LABEL org.opencontainers.image.licenses=Apache-2.0
ENV PATH=/
USER 65532:65532
ENTRYPOINT ["/vnetpool-operator"]

FROM scratch AS node-agent
COPY --from=build /source/target/images/node-agent /
LABEL org.opencontainers.image.title=vnetpool-node-agent
LABEL org.opencontainers.image.licenses=Apache-2.0
ENV PATH=/usr/sbin:/
ENTRYPOINT ["/vnetpool-node-agent"]
