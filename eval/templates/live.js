// Follows a run: the panel every two seconds, the page when a ledger has grown. What the reader
// opened, chose and scrolled to stays; an answer that has not changed touches nothing.
const every = 2000;
const path = location.pathname === "/" ? "" : location.pathname;
const gone = document.getElementById("gone");

const parse = (text) => new DOMParser().parseFromString(text, "text/html");

async function ask(where) {
  const answer = await fetch(where, {cache: "no-store"});
  if (!answer.ok) throw new Error(answer.status);
  return parse(await answer.text());
}

// A name that a part keeps when the page is made anew: its own id, one within, or its place.
function name(part) {
  const inner = part.querySelector(":scope > [id]");
  if (part.id || inner) return part.id || inner.id;
  const home = part.parentElement.closest("[id]") || document.body;
  return home.id + "/" + [...home.querySelectorAll("details")].indexOf(part);
}

function put(place, fresh) {
  if (!place || !fresh || place.innerHTML === fresh.innerHTML) return;
  const opened = new Map([...place.querySelectorAll("details")].map((d) => [name(d), d.open]));
  const chosen = [...place.querySelectorAll("input:checked")].map((input) => input.id);
  const scrolled = [...place.querySelectorAll("pre")].map((pre) => pre.scrollTop);
  const [x, y] = [scrollX, scrollY];
  place.replaceChildren(...fresh.childNodes);
  for (const part of place.querySelectorAll("details")) {
    if (opened.has(name(part))) part.open = opened.get(name(part));
  }
  for (const id of chosen) {
    const input = document.getElementById(id);
    if (input) input.checked = true;
  }
  if (scrolled.length) [...place.querySelectorAll("pre")].forEach((pre, i) => { pre.scrollTop = scrolled[i] || 0; });
  scrollTo(x, y);
}

async function follow() {
  try {
    const panel = (await ask("/live" + path)).getElementById("live");
    const place = document.getElementById("live");
    const grown = panel.dataset.tag !== document.body.dataset.tag;
    put(place, panel);
    if (grown) {
      const page = await ask(path || "/");
      for (const part of ["header", "main"]) put(document.querySelector(part), page.querySelector(part));
      document.body.dataset.tag = page.body.dataset.tag;
    }
    gone.hidden = true;
  } catch (error) {
    gone.hidden = false;
  }
  setTimeout(follow, every);
}

setTimeout(follow, every);
