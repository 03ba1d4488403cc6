// Requests to the server; what it refuses is an Error with its message, and one that does not answer is Offline.

export class Offline extends Error {}
export class Gone extends Error {}

async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Offline("The server does not answer.");
  }
  if (answer.ok) return answer;
  const text = await answer.text();
  let message = text;
  try { message = JSON.parse(text).error ?? text; } catch { /* the server's own text says what is wrong */ }
  throw new (answer.status === 404 ? Gone : Error)(message || `The server answered ${answer.status}.`);
}

const body = (content) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) });

export const get = async (path, options) => (await request(path, options)).json();
export const post = async (path, content = {}) => (await request(path, body(content))).json();
export const file = async (path, content) => (await request(path, body(content))).blob();
export const remove = (path) => request(path, { method: "DELETE" });
export const upload = async (given) =>
  (await request(`api/images?name=${encodeURIComponent(given.name)}`, { method: "POST", body: given })).json();

export const wait = (ms) => new Promise((done) => setTimeout(done, ms));

// Returns the result of a job; `say` is told how it stands.
export async function result(job, say, stopped) {
  for (;;) {
    const now = await get(`api/jobs/${job}`);
    if (now.state === "done") return now.result;
    if (now.state === "failed") throw new Error(now.error);
    if (now.state === "stopped" || stopped()) return null;
    say(now);
    await wait(250);
  }
}
