# The two images for use: `docker build --target operator .` and `docker build --target node-agent .`
FROM rust:1.95-bookworm AS build
WORKDIR /source
COPY . .
RUN make images-root PROFILE=release

FROM scratch AS operator
COPY --from=build /source/target/images/operator /
USER 65532:65532
ENTRYPOINT ["/vnetpool-operator"]

FROM scratch AS node-agent
COPY --from=build /source/target/images/node-agent /
ENV PATH=/usr/sbin
ENTRYPOINT ["/vnetpool-node-agent"]
