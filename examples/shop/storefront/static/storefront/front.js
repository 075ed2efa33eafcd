"use strict";

const headline = document.getElementById("headline");
const actions = document.getElementById("actions");
const answer = document.getElementById("answer");
const buttons = document.querySelectorAll("button[data-fault]");

const token = () => document.cookie.match(/csrftoken=([^;]+)/)?.[1] ?? "";
const post = (path) => fetch(path, { method: "POST", headers: { "X-CSRFToken": token() } });

async function get(path) {
  const response = await fetch(path, { headers: { Accept: "application/json" } });
  const body = await response.json();
  return { path, status: response.status, body };
}

/** The crowd is sent by the shop's host: a browser opens too few connections. */
async function crowd() {
  const sent = await (await post("/sabotage/crowd/")).json();
  const note = `${sent.requests} requests, ${sent.failed} failed; since the last failure ${sent.worked_since} all worked`;
  const { path = "/orders/stock/", status = 200, body = sent } = sent.example;
  return { path, status, body, note };
}

const faults = {
  pool: crowd,
  report: () => get("/reports/sales/"),
  cache: async () => {
    await get("/catalogue/tools/");
    await post("/sabotage/cache/books/");
    return get("/catalogue/books/");
  },
  upstream: async () => {
    await post("/sabotage/upstream/");
    return get("/shipping/quote/");
  },
  bug: () => get("/basket/total/?country=IS"),
};

function show({ path, status, body, note }) {
  const report = body.recovery;
  const words = !report
    ? "It works"
    : report.success
      ? "It broke, and was repaired"
      : report.status === "pending"
        ? "It broke; the repair is under way"
        : "It broke, and stays broken";
  headline.textContent = words;
  headline.className = !report || report.success ? "good" : "bad";
  headline.dataset.status = report?.status ?? "ok";
  actions.replaceChildren(
    ...(report?.actions ?? []).map((action) => {
      const item = document.createElement("li");
      const reason = document.createElement("small");
      reason.textContent = action.reason ?? "";
      item.append(`${action.strategy}: ${(action.verdict ?? "").replaceAll("_", " ")}`, reason);
      return item;
    }),
  );
  answer.textContent = `GET ${path} → ${status}\n${note ? note + "\n" : ""}\n${JSON.stringify(body, null, 2)}`;
}

for (const button of buttons) {
  button.addEventListener("click", async () => {
    buttons.forEach((one) => (one.disabled = true));
    headline.textContent = "Breaking it…";
    headline.className = "";
    delete headline.dataset.status;
    actions.replaceChildren();
    try {
      show(await faults[button.dataset.fault]());
    } catch (error) {
      headline.textContent = "The shop did not answer";
      headline.className = "bad";
      answer.textContent = String(error);
    } finally {
      buttons.forEach((one) => (one.disabled = false));
    }
  });
}
