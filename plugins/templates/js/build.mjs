// Makes policy.wasm of policy.js. What a policy must not have anyway is left out: no clock, no randomness, no network, no
// output; so the plugin imports nothing but the interface.
import { readFile, writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";

const { component } = await componentize(await readFile("policy.js", "utf8"), {
  sourceName: "policy.js",
  witPath: "wit/0.1.0",
  worldName: "plugin",
  disableFeatures: ["random", "stdio", "clocks", "http", "fetch-event"],
});
await writeFile("policy.wasm", component);
console.log(`policy.wasm: ${component.length} bytes`);
