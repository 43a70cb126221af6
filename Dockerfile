# The image of cmekproxy: one static program without the embedded development
# store, certificates, and time zones. It has no shell, does not run as root and
# needs no writable directory. "make image" builds it with the version from git.
# docs/running.md says how to run it, and docs/releasing.md how to build for
# several platforms. With PKCS#11: deploy/image/pkcs11.Dockerfile.
ARG GO_IMAGE=golang:1.26-bookworm
FROM --platform=$BUILDPLATFORM $GO_IMAGE AS build
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates tzdata
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .

# The platform of the image is set by docker build; Go compiles for any here. A
# default would win over it.
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=
# v1.0.0 is the certified version of Go's FIPS module; see docs/fips.md.
ARG GOFIPS140=off
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH GOFIPS140=$GOFIPS140 go build -tags nodev -trimpath \
      -ldflags "-s -w -X main.release=$VERSION" -o /image/cmekproxy ./cmd/proxy \
    && deploy/image/rootfs.sh /image

FROM scratch
COPY --from=build /image/ /
USER 65532:65532
# S3; health and metrics, as in the examples of deploy. The admin port 9001 is
# for loopback.
EXPOSE 9000 9002
# It reads health_listen from /etc/cmekproxy/config.yaml, or from the file that
# CMEKPROXY_CONFIG names. Kubernetes ignores it and has its own probes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/cmekproxy", "health"]
ENTRYPOINT ["/cmekproxy"]
CMD ["serve"]

ARG VERSION=
ARG REVISION=
ARG CREATED=
LABEL org.opencontainers.image.title="cmekproxy" \
      org.opencontainers.image.description="S3 proxy that encrypts objects under the key owner's KMS key" \
      org.opencontainers.image.source="https://github.com/cmekproxy/cmekproxy" \
      org.opencontainers.image.documentation="https://github.com/cmekproxy/cmekproxy/blob/main/docs/README.md" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
