#!/usr/bin/env bash
# Writes the digest of every base image behind its tag, in the Dockerfiles and in README.md: what is
# built later is then built on the same bytes. `make pin-images` runs it, on a computer that reaches
# the registry. An image that has a digest keeps it; --update asks again for all.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

IMAGE_TAG='s/^FROM ([^ @]+:[^ @]+)( .*)?$/\1/p'
DIGEST='@sha256:[0-9a-f]{64}'

digest() { # of an image NAME:TAG, for all its architectures
  if command -v skopeo > /dev/null; then
    skopeo inspect --raw "docker://$1" | sha256sum | sed 's/ .*//; s/^/sha256:/'
  else
    docker buildx imagetools inspect "$1" --format '{{.Manifest.Digest}}'
  fi
}

main() {
  local image found files=("$HERE"/Dockerfile.* "$HERE/README.md")
  command -v skopeo > /dev/null || docker buildx version > /dev/null 2>&1 \
    || die "neither skopeo nor docker buildx is here: type sudo apt install skopeo"
  if [ "${1:-}" = --update ]; then
    run sed -i -E "s/(:[A-Za-z0-9._-]+)$DIGEST/\1/g" "${files[@]}"
  fi
  while read -r image; do
    found=$(digest "$image") || die "$image: the registry gives no digest: check network and tag"
    [[ @$found =~ ^$DIGEST$ ]] || die "$image: '$found' is no digest: is the answer complete?"
    run sed -i -E "s|(${image//./\\.})($DIGEST)?([^A-Za-z0-9._@-]\|\$)|\1@$found\3|g" "${files[@]}"
    say "$image@$found"
  done < <(sed -nE "$IMAGE_TAG" "$HERE"/Dockerfile.* | sort -u)
}

main "$@"
