// Asks llama.cpp for the likeliest next tokens. Reads one JSON object on stdin: {model, adapter, prompts: [[ids]], count}; writes [[ids]].
import {readFileSync} from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const asked = JSON.parse(readFileSync(0, "utf8"));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 2});
const model = await llama.loadModel({modelPath: asked.model});
const lora = asked.adapter ? {adapters: [{filePath: asked.adapter, scale: 1}]} : undefined;
const said = [];
for (const prompt of asked.prompts) {
    const context = await model.createContext({contextSize: 512, lora});
    const sequence = context.getSequence();
    const tokens = [];
    for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        tokens.push(token);
        if (tokens.length >= asked.count) break;
    }
    said.push(tokens);
    await context.dispose();
}
const ids = (asked.texts ?? []).map((text) => [...model.tokenize(text, true)]);
process.stdout.write("RESULT" + JSON.stringify({said, ids}) + "\n");
process.exit(0);
