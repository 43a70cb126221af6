// Opens the operator's page in headless Chromium, as a person does, and prints
// what it saw as JSON. Between two looks it waits for a line on its input.
//
//   node page.mjs CHROMIUM URL PASSWORD PICTURES
import {createInterface} from "node:readline";
import {chromium} from "playwright-core";

const [program, url, password, pictures] = process.argv.slice(2);
const browser = await chromium.launch({executablePath: program, args: ["--no-sandbox"]});
const complaints = [];

async function open(colorScheme, width) {
  const context = await browser.newContext({
    colorScheme,
    viewport: {width, height: 900},
    httpCredentials: {username: "operator", password},
  });
  const page = await context.newPage();
  page.on("console", (m) => { if (m.type() === "error") complaints.push(m.text()); });
  page.on("pageerror", (e) => complaints.push(String(e)));
  page.on("request", (r) => { if (!r.url().startsWith(url)) complaints.push("a request to " + r.url()); });
  const answer = await page.goto(url);
  if (!answer.ok()) complaints.push(`${answer.status()} ${answer.statusText()}`);
  return page;
}

// look says what a person sees.
async function look(page) {
  return page.evaluate(() => {
    const texts = (selector) => [...document.querySelectorAll(selector)].map((e) => e.innerText.replace(/\s+/g, " ").trim());
    return {
      title: document.title,
      state: texts("main > p")[0],
      notices: texts("main .notice"),
      keys: texts("#keys tbody tr"),
      errors: texts("#errors tbody tr"),
      lines: document.querySelectorAll("svg polyline").length,
      background: getComputedStyle(document.body).backgroundColor,
      stale: document.getElementById("live").hidden ? "" : document.getElementById("live").innerText,
      sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    };
  });
}

const dark = await open("dark", 390);
const seen = {dark: await look(dark)};
await dark.screenshot({path: `${pictures}/page-dark.png`, fullPage: true});
await dark.context().close();

const page = await open("light", 1100);
for await (const step of createInterface({input: process.stdin})) {
  const [name, wanted] = step.split("\t");
  await page.waitForFunction((text) => document.body.innerText.includes(text), wanted, {timeout: 60000}).catch((e) => {
    complaints.push(`${name}: "${wanted}" was not seen: ${e.message}`);
  });
  seen[name] = await look(page);
  await page.screenshot({path: `${pictures}/page-${name}.png`, fullPage: true});
  console.log(JSON.stringify({name, ...seen[name], complaints}));
}
console.log(JSON.stringify({name: "dark", ...seen.dark, complaints}));
await browser.close();
