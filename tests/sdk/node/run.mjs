// Runs the cases of one SDK against one base URL, all at once, and prints what the SDK made of each as JSON.
//
// In:  {"sdk", "base", "cases": [{"id", "call", "stream", "tool", "headers"}]} on stdin; "question" and "key" too,
//      where something is to be said of the cache.
// Out: {id: {"events", "text", "thoughts", "tools", "error"}} on stdout. An exception is part of the result. Where
//      there was a question, so is "cache", the last response's Cache-Status.

const SCHEMA = {
  type: "object",
  properties: { city: { type: "string" }, days: { type: "integer" } },
  required: ["city"],
};
const FUNCTION = { name: "get_weather", description: "The weather", parameters: SCHEMA };
const QUESTION = "What is the weather?";
const turns = (asked) => [{ role: "user", content: asked.question }];
const CALLED = "function";

/** One item of an SDK: its dump, and the text, thought or tool call that is in it. */
const seen = (dump, { text, thought, tools } = {}) => ({ dump, text, thought, tools: tools ?? [] });
/** `fetch` that notes what is said of the cache. */
const fetching = (asked) => async (...given) => {
  const response = await fetch(...given);
  asked.cache = response.headers.get("cache-status");
  return response;
};
const call = (name, args) => ({ name, arguments: typeof args === "string" ? JSON.parse(args) : args });

const SDKS = {
  async openai() {
    const { OpenAI } = await import("openai");
    const client = (asked) =>
      new OpenAI({
        baseURL: `${asked.base}/v1`,
        apiKey: asked.key,
        maxRetries: 0,
        defaultHeaders: asked.headers,
        fetch: fetching(asked),
      });
    const calls = (list) => (list ?? []).map((item) => call(item.function.name, item.function.arguments));

    async function* chat(asked) {
      const body = { model: asked.id, messages: turns(asked) };
      if (asked.tool) body.tools = [{ type: CALLED, function: FUNCTION }];
      if (!asked.stream) {
        const given = await client(asked).chat.completions.create(body);
        const { message } = given.choices[0];
        yield seen(given, { text: message.content, thought: message.reasoning_content, tools: calls(message.tool_calls) });
        return;
      }
      const stream = client(asked).chat.completions.stream({ ...body, stream_options: { include_usage: true } });
      for await (const chunk of stream) {
        const delta = chunk.choices[0]?.delta ?? {};
        yield seen(chunk, { text: delta.content, thought: delta.reasoning_content });
      }
      const final = await stream.finalChatCompletion();
      yield seen(final, { tools: calls(final.choices[0].message.tool_calls) });
    }

    async function* completions(asked) {
      const given = await client(asked).completions.create({ model: asked.id, prompt: asked.question, stream: asked.stream });
      for await (const chunk of asked.stream ? given : [given]) yield seen(chunk, { text: chunk.choices[0].text });
    }

    async function* responses(asked) {
      const body = { model: asked.id, input: asked.question };
      if (asked.tool) body.tools = [{ type: CALLED, ...FUNCTION, strict: false }];
      const final = (given) => ({
        thought: given.output.flatMap((item) => (item.summary ?? []).map((part) => part.text)).join(""),
        tools: given.output.filter((item) => item.type === "function_call").map((item) => call(item.name, item.arguments)),
      });
      if (!asked.stream) {
        const given = await client(asked).responses.create(body);
        yield seen(given, { ...final(given), text: given.output_text });
        return;
      }
      const stream = client(asked).responses.stream(body);
      for await (const event of stream)
        yield seen(event, { text: event.type === "response.output_text.delta" ? event.delta : null });
      const given = await stream.finalResponse();
      yield seen(given, final(given));
    }

    async function* embeddings(asked) {
      yield seen(await client(asked).embeddings.create({ model: asked.id, input: ["one", "two"] }));
    }
    return { "openai.chat": chat, "openai.completions": completions, "openai.responses": responses, "openai.embeddings": embeddings };
  },

  async anthropic() {
    const { Anthropic } = await import("@anthropic-ai/sdk");
    const final = (given) => ({
      text: given.content.map((part) => part.text ?? "").join(""),
      thought: given.content.map((part) => part.thinking ?? "").join(""),
      tools: given.content.filter((part) => part.type === "tool_use").map((part) => call(part.name, part.input)),
    });

    async function* messages(asked) {
      const client = new Anthropic({
        baseURL: asked.base,
        apiKey: asked.key,
        maxRetries: 0,
        defaultHeaders: asked.headers,
        fetch: fetching(asked),
      });
      const body = { model: asked.id, messages: turns(asked), max_tokens: 100 };
      if (asked.tool) body.tools = [{ name: "get_weather", description: "The weather", input_schema: SCHEMA }];
      if (!asked.stream) {
        const given = await client.messages.create(body);
        yield seen(given, final(given));
        return;
      }
      const stream = client.messages.stream(body);
      for await (const event of stream)
        yield seen(event, { text: event.delta?.type === "text_delta" ? event.delta.text : null });
      const given = await stream.finalMessage();
      yield seen(given, { ...final(given), text: null });
    }
    return { anthropic: messages };
  },

  async gemini() {
    const { GoogleGenAI } = await import("@google/genai");

    async function* generate(asked) {
      const httpOptions = { baseUrl: asked.base, headers: asked.headers, retryOptions: { attempts: 1 } };
      const { models } = new GoogleGenAI({ apiKey: asked.key, vertexai: false, httpOptions });
      const body = { model: asked.id, contents: asked.question, config: {} };
      if (asked.tool)
        body.config.tools = [{ functionDeclarations: [{ ...FUNCTION, parameters: undefined, parametersJsonSchema: SCHEMA }] }];
      const given = asked.stream ? await models.generateContentStream(body) : [await models.generateContent(body)];
      for await (const chunk of given) {
        const parts = chunk.candidates[0].content.parts;
        const texts = (thought) => parts.filter((part) => Boolean(part.thought) === thought).map((part) => part.text ?? "").join("");
        const tools = parts.filter((part) => part.functionCall).map((part) => call(part.functionCall.name, part.functionCall.args));
        const { sdkHttpResponse, ...dump } = chunk;
        yield seen(dump, { text: texts(false), thought: texts(true), tools });
      }
    }
    return { gemini: generate };
  },

  async ollama() {
    const { Ollama } = await import("ollama");
    const client = (asked) => new Ollama({ host: asked.base, headers: asked.headers });

    async function* chat(asked) {
      const tools = asked.tool ? [{ type: CALLED, function: FUNCTION }] : undefined;
      const given = await client(asked).chat({ model: asked.id, messages: turns(asked), stream: asked.stream, tools });
      for await (const { message, ...rest } of asked.stream ? given : [given])
        yield seen({ message, ...rest }, {
          text: message.content,
          thought: message.thinking,
          tools: (message.tool_calls ?? []).map((item) => call(item.function.name, item.function.arguments)),
        });
    }

    async function* generate(asked) {
      const given = await client(asked).generate({ model: asked.id, prompt: asked.question, stream: asked.stream });
      for await (const part of asked.stream ? given : [given]) yield seen(part, { text: part.response, thought: part.thinking });
    }

    async function* embed(asked) {
      yield seen(await client(asked).embed({ model: asked.id, input: ["one", "two"] }));
    }
    return { "ollama.chat": chat, "ollama.generate": generate, "ollama.embed": embed };
  },

  async ai() {
    const { generateText, jsonSchema, streamText, tool } = await import("ai");
    globalThis.AI_SDK_LOG_WARNINGS = false; // they go to stdout
    const { createOpenAI } = await import("@ai-sdk/openai");
    const { createAnthropic } = await import("@ai-sdk/anthropic");
    const provider = (create) => (asked) =>
      create({ baseURL: `${asked.base}/v1`, apiKey: asked.key, headers: asked.headers });
    const openai = provider(createOpenAI);
    const anthropic = provider(createAnthropic);

    const generate = (model) =>
      async function* (asked) {
        const options = { model: model(asked), prompt: asked.question, maxRetries: 0, onError: () => {} };
        if (asked.tool) options.tools = { get_weather: tool({ description: "The weather", inputSchema: jsonSchema(SCHEMA) }) };
        if (!asked.stream) {
          const given = await generateText(options);
          const { content, finishReason, usage } = given;
          const tools = given.toolCalls.map((item) => call(item.toolName, item.input));
          yield seen(stable({ content, finishReason, usage }), { text: given.text, thought: given.reasoningText, tools });
          return;
        }
        for await (const part of streamText(options).fullStream) {
          if (part.type === "error") throw part.error;
          yield seen(stable(part), {
            text: part.type === "text-delta" ? part.text : null,
            thought: part.type === "reasoning-delta" ? part.text : null,
            tools: part.type === "tool-call" ? [call(part.toolName, part.input)] : [],
          });
        }
      };
    return {
      "ai.openai": generate((asked) => openai(asked).responses(asked.id)),
      "ai.openai.chat": generate((asked) => openai(asked).chat(asked.id)),
      "ai.anthropic": generate((asked) => anthropic(asked)(asked.id)),
    };
  },
};

/** Without what a client makes up by itself (times, random ids) or copies from response headers. */
function stable(value) {
  const varies = new Set(["id", "messageId", "timestamp", "response", "request", "headers"]);
  const text = JSON.stringify(value, (key, inner) => (varies.has(key) ? undefined : inner));
  return text === undefined ? null : JSON.parse(text);
}

async function run(calls, asked) {
  const items = [];
  let error = null;
  try {
    for await (const item of calls[asked.call](asked)) items.push(item);
  } catch (raised) {
    const status = raised.status ?? raised.statusCode ?? raised.status_code;
    error = {
      kind: raised.constructor?.name ?? typeof raised,
      status: typeof status === "number" ? status : null,
      message: raised.message ?? JSON.stringify(raised),
    };
  }
  const gather = (key) => items.map((item) => item[key]).filter(Boolean);
  const tools = items.flatMap((item) => item.tools);
  const result = { events: items.map((item) => item.dump), text: gather("text"), thoughts: gather("thought"), tools, error };
  return asked.looks ? { ...result, cache: asked.cache } : result;
}

let input = "";
for await (const chunk of process.stdin) input += chunk;
const { sdk, base, cases } = JSON.parse(input);
// The SDKs' stream helpers also reject promises that nobody asked for; what the iteration throws is what counts.
process.on("unhandledRejection", () => {});
const calls = await SDKS[sdk]();
const results = await Promise.all(
  cases.map(async (given) => {
    const asked = { question: QUESTION, key: "sk-test", ...given, base, looks: "question" in given };
    return [asked.id, await run(calls, asked)];
  }),
);
process.stdout.write(JSON.stringify(Object.fromEntries(results)));
