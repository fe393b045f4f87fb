"""What stands between the page and its server in a test: it notes what is asked, holds answers, and breaks them."""

# What the page sends is noted in ``asked``; ``broken`` answers 503 to what it chooses, or 400 if it says so, and
# ``held`` keeps it waiting.
# After an outage the page looks every 2 s; here it looks every 100 ms.
BETWEEN = """
const later = setTimeout;
window.setTimeout = (run, wait) => later(run, wait === 2000 ? 100 : wait);
const send = fetch;
window.asked = [];
window.fetch = async (path, options = {}) => {
  const body = typeof options.body === "string" ? JSON.parse(options.body) : {};
  asked.push([path, options.body]);
  const broken = window.broken?.(path, body);
  if (broken) return Response.json({ detail: "it is broken" }, { status: broken === 400 ? 400 : 503 });
  while (window.held?.(path, body)) await new Promise((done) => later(done, 20));
  return send(path, options);
};"""
SEARCHES = "asked.filter(([path]) => path === '/v1/search')"
FIRST_PAGES = SEARCHES + ".filter(([, body]) => !JSON.parse(body).after)"
PICTURES = "[...document.querySelectorAll('.card img')].filter((each) => each.naturalWidth).length"


def do(tab, script):
    """Run a script in the page, as BETWEEN lets it be told what to hold and what to break."""
    tab.evaluate(f"() => {{ {script} }}")
