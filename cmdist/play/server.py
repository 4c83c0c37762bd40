"""The page's server, for this machine alone: nothing is sent anywhere else or loaded from anywhere else."""

import logging
import re
import socket
import sys
import traceback
from importlib import resources

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, make_server

from cmdist.errors import CmdistError, ConfigError
from cmdist.play.room import Room
from cmdist.system import cli, urls

HOST = "127.0.0.1"
LARGEST = 48 * 2**20  # bytes of a message: a picture of a camera in base64
FILES = {"page.html": "text/html", "play.js": "text/javascript", "play.css": "text/css"}
HEADERS = {  # the browser itself refuses what comes from elsewhere
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def application(room: Room) -> Flask:
    """The page, its files, and an address for each action of the room."""
    app = Flask(__name__, static_folder=None)
    # else a page of another site could speak with it under a name that leads to this machine
    app.config.update(TRUSTED_HOSTS=[HOST, "localhost"], MAX_CONTENT_LENGTH=LARGEST)

    @app.get("/", defaults={"name": "page.html"})
    @app.get("/<name>")
    def file(name: str) -> Response:
        if name not in FILES:
            return _refusal(f"there is no {name} here", 404)
        return Response(resources.files(__package__).joinpath(name).read_bytes(), mimetype=FILES[name])

    @app.post("/<action>")
    def act(action: str) -> Response:
        if action not in room.actions:
            return _refusal(f"there is no {action} here", 404)
        if not request.is_json:  # which a form of another site cannot send
            return _refusal("a message must be JSON", 415)
        return jsonify(room.act(action, request.get_json()))

    @app.errorhandler(Exception)
    def refuse(error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return _refusal(" ".join((error.description or error.name).split()), error.code or 500)
        said = cli.sentence(error)
        if isinstance(error, CmdistError | OSError):  # controls of the page have the names of the commands' options
            return _refusal(re.sub(r"(?<!\S)--(?=[a-z])", "", said), 400)
        if "--debug" in sys.argv:
            sys.stderr.write(urls.masked(traceback.format_exc()))
        cli.say(f"error: {said}")
        return _refusal(said, 500)

    @app.after_request
    def guarded(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    return app


def _refusal(sentence: str, code: int) -> Response:
    response = jsonify({"error": sentence})
    response.status_code = code
    return response


def listening(port: int) -> socket.socket:
    """A socket of this machine alone; port 0 takes a free one. Raises ConfigError for a port that is taken."""
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--port {port} cannot be taken ({error}); another, or 0 for any free one, may be") from error


def serving(room: Room, at: socket.socket) -> BaseWSGIServer:
    """The server of the page at a listening socket; `serve_forever` runs it until Ctrl-C."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each stroke of a brush
    return make_server(HOST, at.getsockname()[1], application(room), threaded=True, fd=at.fileno())
