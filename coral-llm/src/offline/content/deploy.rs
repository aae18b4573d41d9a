//! What builds and runs a project.

use super::{notice, slug};
use crate::offline::brief::Brief;

pub(super) fn dockerfile(brief: &Brief) -> String {
    format!(
        "# {notice}\nFROM debian:bookworm-slim\nLABEL org.opencontainers.image.title=\"{name}\"\n\
         RUN useradd --system --uid 10001 app\nWORKDIR /app\nCOPY --chown=app:app . /app\nUSER app\nEXPOSE 8080\n\
         HEALTHCHECK --interval=30s --timeout=3s CMD [\"/app/bin/{name}\", \"health\"]\n\
         ENTRYPOINT [\"/app/bin/{name}\"]\n",
        notice = notice(),
        name = slug(&brief.title)
    )
}

pub(super) fn compose(brief: &Brief) -> String {
    format!(
        "# {notice}\nname: {name}\nservices:\n  app:\n    build: .\n    ports: [\"127.0.0.1:8080:8080\"]\n    environment:\n      \
         DATABASE_URL: \"postgres://{name}@db/{name}\"\n    depends_on:\n      db:\n        condition: service_healthy\n    \
         read_only: true\n    restart: unless-stopped\n  db:\n    image: postgres:17\n    environment:\n      POSTGRES_USER: \"{name}\"\n      \
         POSTGRES_PASSWORD_FILE: /run/secrets/db_password\n    secrets: [db_password]\n    volumes: [\"db:/var/lib/postgresql/data\"]\n    healthcheck:\n      \
         test: [\"CMD-SHELL\", \"pg_isready -U {name}\"]\n      interval: 10s\nvolumes:\n  db: {{}}\nsecrets:\n  db_password:\n    file: ./secrets/db_password\n",
        notice = notice(),
        name = slug(&brief.title)
    )
}

pub(super) fn pipeline(brief: &Brief) -> String {
    format!(
        "# {notice}\nname: {name}\non:\n  push:\n    branches: [main]\n  pull_request: {{}}\npermissions:\n  contents: read\njobs:\n  \
         verify:\n    runs-on: ubuntu-latest\n    steps:\n      - uses: actions/checkout@v4\n      - name: Check and test\n        run: make check test\n  \
         image:\n    needs: verify\n    if: github.ref == 'refs/heads/main'\n    runs-on: ubuntu-latest\n    steps:\n      - uses: actions/checkout@v4\n      \
         - name: Build the image\n        run: docker build --tag {name}:${{{{ github.sha }}}} .\n",
        notice = notice(),
        name = slug(&brief.title)
    )
}

pub(super) fn script(brief: &Brief) -> String {
    format!(
        "#!/bin/sh\n# {notice}\nset -eu\n\nname={name}\ncommand=${{1:-help}}\ncase \"$command\" in\n  build) docker build --tag \"$name\" . ;;\n  \
         start) docker compose up --detach --wait ;;\n  stop) docker compose down ;;\n  *) echo \"usage: $0 build|start|stop\" ;;\nesac\n",
        notice = notice(),
        name = slug(&brief.title)
    )
}

pub(super) fn makefile(brief: &Brief) -> String {
    format!(
        "# {}\n.PHONY: build start stop\n\nbuild:\n\tdocker build --tag {} .\n\nstart:\n\tdocker compose up --detach --wait\n\n\
         stop:\n\tdocker compose down\n",
        notice(),
        slug(&brief.title)
    )
}
