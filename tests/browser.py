"""Loads a page in a headless browser and reports its layout and its console, without a driver and without a network."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
needed = pytest.mark.skipif(PROGRAM is None, reason=f"no browser: none of {', '.join(NAMES)} is on the PATH")

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
         "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", "--window-size=1300,1000",
         "--host-resolver-rules=MAP * ~NOTFOUND"]  # fmt: skip
DARK = "--blink-settings=preferredColorScheme=0"
# Runs in a copy of the page, after everything is loaded.
PROBE = """<script>addEventListener('load', () => {
  const root = document.documentElement, style = getComputedStyle(document.body);
  const seen = {
    inner: innerWidth, scroll: root.scrollWidth, page: document.body.scrollHeight,
    background: style.backgroundColor, ink: style.color,
    soft: getComputedStyle(document.querySelector('figcaption') || document.body).color,
    images: [...document.images].map(i => [i.complete, i.naturalWidth, getComputedStyle(i).imageRendering]),
    charts: [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width),
    wide: [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 0.5
      && !e.closest('.scroll, pre')).map(e => e.outerHTML.slice(0, 80)),
    loaded: performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:')),
    broken: [...document.querySelectorAll('a[href^="#"]')].filter(a => !document.querySelector(a.getAttribute('href')))
      .length,
  };
  parent.postMessage(JSON.stringify(seen), '*');
});</script>"""
# A frame can be narrower than 500 pixels; a window cannot.
FRAME = """<!DOCTYPE html><style>:root {{ color-scheme: light dark }}</style><body>
<iframe src="copy.html" style="border: 0; width: {width}px; height: 900px"></iframe>
<script>addEventListener('message', event => {{
  const told = document.createElement('pre');
  told.id = 'probe';
  told.textContent = event.data;
  document.body.append(told);
}});</script></body>"""


def look(page, folder, width=1200, *more):
    """Returns (what the probe measured, the console's lines) for a page's HTML in a frame of `width` pixels."""
    copy, frame = folder / "copy.html", folder / "frame.html"
    # The page's own policy would forbid the probe.
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    copy.write_text(without_policy.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    frame.write_text(FRAME.format(width=width))
    done = opened(frame, folder, *more)
    (seen,) = re.findall(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    return json.loads(unescape(seen)), console(done)


def opened(path, folder, *more):
    """Opens a file in the browser, unmodified; returns the completed process, whose stdout is the DOM."""
    command = [PROGRAM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *more, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def console(done):
    """Returns the lines that the page wrote to the console: errors, warnings and blocked requests."""
    return [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
