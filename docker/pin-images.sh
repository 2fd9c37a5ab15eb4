#!/usr/bin/env bash
# Writes the digest of every base image behind its tag, in the Dockerfiles and in README.md: what is
# built later is then built on the same bytes. `make pin-images` runs it, on a computer that reaches
# the registry. An image that has a digest keeps it; --update asks again for all.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

digest() { # of an image NAME:TAG, for all its architectures
  if command -v skopeo > /dev/null; then
    skopeo inspect --raw "docker://$1" | sha256sum | sed 's/ .*//; s/^/sha256:/'
  elif docker buildx version > /dev/null 2>&1; then
    docker buildx imagetools inspect "$1" --format '{{.Manifest.Digest}}'
  else
    die "neither skopeo nor docker buildx is here: apt install skopeo, or docker-buildx-plugin"
  fi
}

main() {
  local update=${1:-} image found
  local files=("$HERE"/Dockerfile.* "$HERE/README.md")
  if [ "$update" = --update ]; then run sed -i -E 's/(:[A-Za-z0-9._-]+)@sha256:[0-9a-f]{64}/\1/g' "${files[@]}"; fi
  while read -r image; do
    found=$(digest "$image") || die "$image: the registry gives no digest: check the network, and the tag"
    [[ $found =~ ^sha256:[0-9a-f]{64}$ ]] || die "$image: '$found' is no digest: is the registry's answer complete?"
    run sed -i -E "s|(${image//./\\.})(@sha256:[0-9a-f]{64})?([^A-Za-z0-9._@-]\|\$)|\1@$found\3|g" "${files[@]}"
    say "$image@$found"
  done < <(sed -nE 's/^FROM ([^ @]+:[^ @]+)( .*)?$/\1/p' "$HERE"/Dockerfile.* | sort -u)
}

main "$@"
